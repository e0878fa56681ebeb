#!/bin/bash
# Installs the .deb on a clean Debian, starts the daemon as its unit does, and purges it,
# all without systemd, as in an image that is being made:
#
#	CLEAN=FILE.tar bash cmd/overlayd/package/check.sh bin/package/overlayd_*.deb
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"

host host1 192.0.2.1
root=$work/root/host1 ns=ovl$$-host1
files() { find "$root" -xdev | sed "s|^$root||" | LC_ALL=C sort; }
files >"$work/before"

echo "install"
cp "$1" "$root/root/overlayd.deb"
inside host1 dpkg -i /root/overlayd.deb
inside host1 getent passwd overlayd >/dev/null || fail "no user"
inside host1 overlayd version
inside host1 overlayd config check /etc/overlayd/overlayd.yaml
for f in usr/share/man/man1/overlayd-run.1.gz usr/share/bash-completion/completions/overlayd usr/lib/systemd/system/overlayd.service; do
	[ -s "$root/$f" ] || fail "no /$f"
done
inside host1 systemd-analyze verify overlayd.service || fail "the unit is not in order"
exposure=$(inside host1 systemd-analyze security --offline=true overlayd.service | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
echo "systemd-analyze security: $exposure"
awk -v e="$exposure" 'BEGIN { exit !(e > 0 && e <= 3.0) }' || fail "an exposure of $exposure"

echo "start"
mkdir -p "$root/run/overlayd" "$root/var/lib/overlayd"
inside host1 chown overlayd:overlayd /run/overlayd /var/lib/overlayd
# With the user and the privileges that the unit gives.
inside host1 setpriv --reuid overlayd --regid overlayd --clear-groups --no-new-privs \
	--inh-caps -all,+net_admin,+net_raw --ambient-caps +net_admin,+net_raw --bounding-set -all,+net_admin,+net_raw \
	overlayd run --config /etc/overlayd/overlayd.yaml --interface eth0 --keep-paths >"$work/log" 2>&1 &
daemon=$!
eventually 60 test -s "$root/run/overlayd/subnet.env" || { cat "$work/log"; fail "no subnet"; }
inside host1 overlayd status
ip -n "$ns" link show overlay0-v4 >/dev/null || fail "no device for kernel paths"

echo "stop, with --keep-paths"
kill "$daemon"
wait "$daemon" || fail "the daemon did not end well"
ip -n "$ns" link show overlay0-v4 >/dev/null || fail "the kernel paths are gone"

echo "purge"
inside host1 systemctl enable overlayd
echo secret >"$root/etc/overlayd/key"
inside host1 chown overlayd /etc/overlayd/key
inside host1 dpkg --purge overlayd
# What the administrator has put there is nobody's who comes later.
[ "$(stat -c %U:%G "$root/etc/overlayd/key")" = root:root ] || fail "a key belongs to a user that is gone"
rm -r "$root/etc/overlayd" "$root/root/overlayd.deb"
if ip -n "$ns" link show | grep overlay; then fail "a device is left"; fi
if ip -n "$ns" route show table all | grep 'proto 96'; then fail "routes are left"; fi
if ip netns exec "$ns" nft list tables | grep overlayd; then fail "a table is left"; fi
if inside host1 getent passwd overlayd; then fail "the user is left"; fi
files >"$work/after"
# What dpkg and useradd keep of their own.
if LC_ALL=C comm -13 "$work/before" "$work/after" | grep -v '^/run/systemd\|^/var/lib/dpkg/\|^/var/log/\|^/etc/.*-$\|^/run$\|^/dev\|^/proc'; then
	fail "files are left"
fi
echo "passed"
