#!/bin/sh
# deb: "configure" and the version before, if any, or "abort-..."; rpm: how many there are now.
set -e
if ! getent group overlayd >/dev/null; then
	groupadd --system overlayd
fi
if ! getent passwd overlayd >/dev/null; then
	useradd --system --gid overlayd --home-dir /var/lib/overlayd --no-create-home \
		--shell /usr/sbin/nologin --comment "overlay network" overlayd
fi
# A new installation is not started: it has no configuration yet. One that runs is
# restarted; what the kernel carries goes on meanwhile. A host that finds no other one is
# not ready for as long as that takes, and dpkg is not to wait for it.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	timeout 60 systemctl try-restart overlayd.service ||
		echo "overlayd is not ready again yet: see \"systemctl status overlayd\"" >&2
fi
