#!/bin/bash
# What systemd makes of the .deb, on a Debian that is booted: install, crashes, upgrades,
# purge.
#
#	CLEAN=FILE.tar bash cmd/overlayd/package/check-systemd.sh bin/package/overlayd_*.deb
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"

host host1 192.0.2.1
root=$work/root/host1 ns=ovl$$-host1
cp "$1" "$root/root/overlayd.deb"
# The same, of a later version.
dpkg-deb -R "$1" "$work/later"
sed -i 's/^Version: .*/&+later/' "$work/later/DEBIAN/control"
dpkg-deb -b --root-owner-group -Znone "$work/later" "$root/root/later.deb" >/dev/null
boot host1
show() { on host1 systemctl show --property "$1" --value overlayd; }
is() { [ "$(show "$1")" = "$2" ]; }
another() { [ "$(show MainPID)" != "$1" ] && is ActiveState active; }
vtep() { ip -n "$ns" -o link show overlay0-v4 | cut -d: -f1; }

echo "install"
on host1 dpkg -i overlayd.deb
is UnitFileState disabled || fail "it is enabled"
is ActiveState inactive || fail "it is started, without a configuration"

echo "start"
# Who hangs is found out sooner than in 30 s.
on host1 'mkdir -p /run/systemd/system/overlayd.service.d; printf "[Service]\nWatchdogSec=2s\n" >/run/systemd/system/overlayd.service.d/check.conf'
on host1 systemctl daemon-reload
on host1 systemctl enable --now overlayd
on host1 overlayd status
on host1 cat /run/overlayd/subnet.env
[ -n "$(vtep)" ] || fail "no device for kernel paths"
for left in "loosely\|rp_filter" "permitted" "read-only"; do
	if on host1 journalctl -u overlayd | grep -i "$left"; then fail "the unit takes away what it needs"; fi
done

echo "what ends badly is started again, and what the kernel carries goes on"
device=$(vtep)
for signal in ABRT KILL SEGV; do # ABRT is the watchdog's
	pid=$(show MainPID)
	on host1 systemctl kill --signal "$signal" overlayd
	eventually 40 another "$pid"
done
pid=$(show MainPID)
on host1 kill -STOP "$pid"
eventually 40 another "$pid"
[ "$(vtep)" = "$device" ] || fail "the kernel paths did not stay"

echo "what can never work is not"
on host1 'cp /etc/overlayd/overlayd.yaml good; echo nonsense: 1 >>/etc/overlayd/overlayd.yaml; ! systemctl restart overlayd'
is ActiveState failed && is ExecMainStatus 2 || fail "it goes on trying"
on host1 cp good /etc/overlayd/overlayd.yaml
on host1 systemctl restart overlayd

echo "upgrade"
pid=$(show MainPID)
on host1 dpkg -i later.deb
another "$pid" || fail "it was not restarted"
[ "$(vtep)" = "$device" ] || fail "the kernel paths did not stay"
# Of a host that does not find its cluster, with a configuration that was changed.
on host1 'echo "join: [192.0.2.99]" >>/etc/overlayd/overlayd.yaml; rm /var/lib/overlayd/*; systemctl stop overlayd; overlayd cleanup; systemctl start --no-block overlayd'
eventually 10 is ActiveState activating
on host1 timeout 90 dpkg -i overlayd.deb || fail "dpkg waits for a cluster"
on host1 grep -q 192.0.2.99 /etc/overlayd/overlayd.yaml || fail "the configuration is gone"
on host1 "dpkg -s overlayd | grep '^Status: install ok installed'"

echo "remove"
on host1 cp good /etc/overlayd/overlayd.yaml
on host1 systemctl restart overlayd
on host1 dpkg --remove overlayd
if on host1 pidof overlayd; then fail "it goes on"; fi
if ip -n "$ns" link show | grep overlay; then fail "a device is left"; fi
on host1 test -e /var/lib/overlayd/node.json -a -e /etc/overlayd/overlayd.yaml || fail "remove is no purge"

echo "and again, up to a purge with the daemon running"
on host1 dpkg -i later.deb
on host1 systemctl enable --now overlayd
on host1 dpkg --purge overlayd
if on host1 pidof overlayd; then fail "it goes on"; fi
if ip -n "$ns" link show | grep overlay; then fail "a device is left"; fi
if ip -n "$ns" route show table all | grep 'proto 96'; then fail "routes are left"; fi
if ip netns exec "$ns" nft list tables | grep overlayd; then fail "a table is left"; fi
if on host1 'ls -d /etc/overlayd /var/lib/overlayd /run/overlayd /etc/systemd/system/*/overlayd.service' 2>/dev/null; then fail "that is left"; fi
echo "passed"
