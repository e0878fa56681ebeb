#!/bin/sh
# deb: "remove" or "upgrade"; rpm: 0 or 1 that stay.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;; # an upgrade: the daemon goes on until the new one takes over
esac
# Also where systemd does not run, in a chroot: nothing enables a unit that is gone.
if command -v systemctl >/dev/null; then
	systemctl --no-reload disable --now overlayd.service || true
fi
# Nothing is left in the kernel that nobody looks after: devices, routes, rules.
/usr/bin/overlayd cleanup || true
