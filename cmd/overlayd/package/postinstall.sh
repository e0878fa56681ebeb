#!/bin/sh
# deb: "configure" and the version before, if any; rpm: how many there are now.
set -e
if ! getent group overlayd >/dev/null; then
	groupadd --system overlayd
fi
if ! getent passwd overlayd >/dev/null; then
	useradd --system --gid overlayd --home-dir /var/lib/overlayd --no-create-home \
		--shell /usr/sbin/nologin --comment "overlay network" overlayd
fi
# A new installation is not started: it has no configuration yet. One that runs is
# restarted; what the kernel carries goes on meanwhile.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart overlayd.service || true
fi
