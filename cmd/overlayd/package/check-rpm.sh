#!/bin/bash
# Installs, upgrades and erases the .rpm, with its scripts, by rpm and under systemd. That the
# rest of the host is a Debian is of no account to them: /usr/sbin/useradd, which rpm
# asks for, is there in a package that it does not know.
#
#	CLEAN=FILE.tar bash cmd/overlayd/package/check-rpm.sh bin/package/overlayd-*.rpm
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"

host host1 192.0.2.1
root=$work/root/host1 ns=ovl$$-host1
cp "$1" "$root/root/overlayd.rpm"
boot host1
rpm() { on host1 rpm --force-debian --nodeps "$@"; }
show() { on host1 systemctl show --property "$1" --value overlayd; }
vtep() { ip -n "$ns" -o link show overlay0-v4 | cut -d: -f1; }
on host1 rpm -qpR overlayd.rpm | grep -qx /usr/sbin/useradd || fail "it does not ask for what makes its user"

echo "install"
rpm -i overlayd.rpm
on host1 rpm -V --nodeps overlayd || fail "what is installed is not what is in the package"
on host1 getent passwd overlayd >/dev/null || fail "no user"
[ "$(show UnitFileState) $(show ActiveState)" = "disabled inactive" ] || fail "it is enabled, or runs"
on host1 systemd-analyze verify overlayd.service || fail "the unit is not in order"

echo "start"
on host1 systemctl enable --now overlayd
on host1 overlayd status
pid=$(show MainPID) device=$(vtep)
on host1 'echo "log_level: debug" >>/etc/overlayd/overlayd.yaml'

echo "upgrade" # the old one's scripts are run with 1 that stays
rpm -U --replacepkgs overlayd.rpm
[ "$(show UnitFileState) $(show ActiveState)" = "enabled active" ] || fail "it does not run, or not at the next start"
[ "$(show MainPID)" != "$pid" ] || fail "it was not restarted"
[ "$(vtep)" = "$device" ] || fail "the kernel paths did not stay"
on host1 grep -q log_level /etc/overlayd/overlayd.yaml || fail "the configuration is gone"

echo "erase"
rpm -e overlayd
if on host1 pidof overlayd; then fail "it goes on"; fi
if ip -n "$ns" link show | grep overlay; then fail "a device is left"; fi
if ip -n "$ns" route show table all | grep 'proto 96'; then fail "routes are left"; fi
if ip netns exec "$ns" nft list tables | grep overlayd; then fail "a table is left"; fi
on host1 test -e /var/lib/overlayd/node.json -a -e /etc/overlayd/overlayd.yaml.rpmsave || fail "what is the host's own is gone"
if on host1 'ls -d /usr/share/doc/overlayd /usr/share/licenses/overlayd /etc/systemd/system/*/overlayd.service' 2>/dev/null; then fail "that is left"; fi
echo "passed"
