#!/bin/sh
# deb: "remove", "purge", "upgrade", ...; rpm: 0 or 1 that stay, and never a purge.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/overlayd /run/overlayd
	rmdir /etc/overlayd 2>/dev/null || true # unless somebody has left a key there
	if getent passwd overlayd >/dev/null; then
		userdel overlayd || true
	fi
fi
