#!/bin/sh
# deb: "remove", "purge", "upgrade", ...; rpm: 0 or 1 that stay, and never a purge.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/overlayd /run/overlayd
	# What somebody has left there stays, but not with an owner whose number the next
	# user gets: it may be a key.
	if [ -d /etc/overlayd ]; then
		rmdir /etc/overlayd 2>/dev/null || chown -R root:root /etc/overlayd || true
	fi
	if getent passwd overlayd >/dev/null; then
		userdel overlayd || true
	fi
fi
