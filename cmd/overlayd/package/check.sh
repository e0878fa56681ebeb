#!/bin/bash
# Installs the .deb on a clean Debian, starts the daemon as its unit does, and purges it:
#
#	bash cmd/overlayd/package/check.sh bin/package/overlayd_*.deb
#
# Needs root, mmdebstrap and a Debian mirror, or a clean Debian of before (CLEAN=FILE.tar).
# What it makes is in a temporary directory and in namespaces of its own.
set -euo pipefail

deb=$(realpath "$1")
root=$(mktemp -d "${TMPDIR:-/tmp}/overlayd-package.XXXXXX")
ns=ovl$$-package
daemon=

clean() {
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	ip netns del "$ns" 2>/dev/null || true
	rm -rf --one-file-system "$root"
}
trap clean EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

# A command in the new system, in the network namespace, with mounts that are gone when it
# ends. Each step becomes the next one, so that a signal reaches the last.
inside=(ip netns exec "$ns" unshare --mount --propagation private sh -ec '
	root=$1; shift
	mount -t proc proc "$root/proc"
	mount -t tmpfs tmpfs "$root/dev"
	mkdir "$root/dev/net"
	for d in null zero random urandom; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
	mknod -m 666 "$root/dev/net/tun" c 10 200 # as udev does it
	exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
' sh "$root")
inside() { "${inside[@]}" "$@"; }

echo "a clean Debian"
if [ -n "${CLEAN:-}" ]; then
	tar -xf "$CLEAN" -C "$root"
else
	mmdebstrap --quiet --variant=minbase --include=nftables,systemd bookworm "$root" >/dev/null
fi
ip netns add "$ns"
ip -n "$ns" link set lo up
ip -n "$ns" link add eth0 type veth peer name far
ip -n "$ns" addr add 192.0.2.1/24 dev eth0
ip -n "$ns" link set far up
ip -n "$ns" link set eth0 up
find "$root" -xdev | sed "s|^$root||" | LC_ALL=C sort >"$root.before"
trap 'clean; rm -f "$root".before "$root".after' EXIT

echo "install"
cp "$deb" "$root/tmp/overlayd.deb"
inside dpkg -i /tmp/overlayd.deb
inside getent passwd overlayd >/dev/null || fail "no user"
inside overlayd version
inside overlayd config check /etc/overlayd/overlayd.yaml
for f in usr/share/man/man1/overlayd-run.1.gz usr/share/bash-completion/completions/overlayd usr/lib/systemd/system/overlayd.service; do
	[ -s "$root/$f" ] || fail "no /$f"
done
inside systemd-analyze verify overlayd.service || fail "the unit is not in order"
exposure=$(inside systemd-analyze security --offline=true overlayd.service | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
echo "systemd-analyze security: $exposure"
awk -v e="$exposure" 'BEGIN { exit !(e > 0 && e <= 3.0) }' || fail "an exposure of $exposure"

echo "start"
mkdir -p "$root/run/overlayd" "$root/var/lib/overlayd"
inside chown overlayd:overlayd /run/overlayd /var/lib/overlayd
# With the user and the privileges that the unit gives.
"${inside[@]}" setpriv --reuid overlayd --regid overlayd --clear-groups --no-new-privs \
	--inh-caps -all,+net_admin,+net_raw --ambient-caps +net_admin,+net_raw --bounding-set -all,+net_admin,+net_raw \
	overlayd run --config /etc/overlayd/overlayd.yaml --interface eth0 --keep-paths >"$root/tmp/log" 2>&1 &
daemon=$!
for _ in $(seq 150); do
	[ ! -s "$root/run/overlayd/subnet.env" ] || break
	kill -0 "$daemon" 2>/dev/null || { cat "$root/tmp/log"; fail "the daemon has ended"; }
	read -rt 0.2 <> <(:) || true
done
cat "$root/run/overlayd/subnet.env" || { cat "$root/tmp/log"; fail "no subnet after 30 s"; }
inside overlayd status
ip -n "$ns" link show overlay0-v4 >/dev/null || fail "no device for kernel paths"

echo "stop, with --keep-paths"
kill "$daemon"
wait "$daemon" || fail "the daemon did not end well"
daemon=
ip -n "$ns" link show overlay0-v4 >/dev/null || fail "the kernel paths are gone"

echo "purge"
inside dpkg --purge overlayd
if ip -n "$ns" link show | grep overlay; then fail "a device is left"; fi
if ip -n "$ns" route show table all | grep 'proto 96'; then fail "routes are left"; fi
if ip netns exec "$ns" nft list tables | grep overlayd; then fail "a table is left"; fi
if inside getent passwd overlayd; then fail "the user is left"; fi
rm -f "$root/tmp/overlayd.deb" "$root/tmp/log"
find "$root" -xdev | sed "s|^$root||" | LC_ALL=C sort >"$root.after"
# What dpkg and useradd keep of their own.
if LC_ALL=C comm -13 "$root.before" "$root.after" | grep -v '^/run/systemd\|^/var/lib/dpkg/\|^/var/log/\|^/etc/.*-$\|^/run$\|^/dev\|^/proc'; then
	fail "files are left"
fi
echo "passed"
