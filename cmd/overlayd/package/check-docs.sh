#!/bin/bash
# Runs what examples/two-hosts/README.md tells to type, as it is written there, on two hosts
# that are booted, and what pages under docs tell to type of systemctl.
#
#	CLEAN=FILE.tar bash cmd/overlayd/package/check-docs.sh bin/overlayd
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
readme=examples/two-hosts/README.md

host host1 192.0.2.1
host host2 192.0.2.2
for h in host1 host2; do
	d=$work/root/$h/root
	mkdir "$d/examples" "$d/new"
	cp -r examples/two-hosts "$d/examples/"
	cp "$1" "$d/new/overlayd"
	boot "$h"
done

# lines FILE HEADING: what stands indented under a heading, commands that go on in one line.
lines() {
	awk -v h="$2" '$0 == h { on = 1; next } /^#/ { on = 0 } on && sub(/^    /, "")' "$1" |
		sed -e ':a' -e '/\\$/N; s/\\\n//; ta'
}
# both HEADING [PATTERN]: those lines that match, each on both hosts before the next one.
both() {
	local line h all
	all=$(lines "$readme" "$1" | grep -e "${2:-.}" | grep -v "${3:-^$}") || fail "nothing under \"$1\""
	while read -r line <&3; do
		for h in host1 host2; do
			echo "$h# $line"
			on "$h" "${line//HOST2/$([ $h = host1 ] && echo host2 || echo host1)}" || { on "$h" journalctl -u overlayd | tail -20; fail "$line"; }
		done
	done 3<<<"$all"
}

# There is no Go on the hosts: "build it once and copy it".
lines "$readme" "## 1. Install" | grep -q '^make build && make install  ' || fail "the installation has changed"
for h in host1 host2; do
	install -m 755 "$1" "$work/root/$h/usr/local/bin/overlayd"
done
both "## 1. Install" . '^make'
lines "$readme" "## 2. The key" | while read -r line; do
	echo "host1# $line"
	on host1 "$line"
done
# "and copy it to the other"
on host2 install -d -m 700 -o overlayd -g overlayd /var/lib/overlayd
cp --preserve=mode "$work/root/host1/var/lib/overlayd/key" "$work/root/host2/var/lib/overlayd/key"
on host2 chown overlayd:overlayd /var/lib/overlayd/key
both "## 3. Configure" . accept_ra
both "## 4. Start"
# The hosts have no IPv6 addresses, and the overlay has.
on host1 overlayd ping host2 --until kernel-vxlan >/dev/null
if on host1 overlayd status | grep warnings; then fail "something is wrong with the hosts"; fi
on host1 'journalctl -u overlayd' | grep -q lease-held || fail "the journal says nothing"

# A container on each host, by the lines of the README but for the image, which is busybox.
make=$(lines "$readme" "## 5. Containers" | grep '^\. \|^subnet\|^unshare --net podman network')
for h in host1 host2; do
	on "$h" 'printf "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers\"\ngraphroot = \"/var/lib/containers\"\n" >/etc/containers/storage.conf'
	echo "$h# $make"
	on "$h" "set -eu; $make"
	on "$h" 'tar -C / -c bin/busybox | podman import -q - busybox'
	on "$h" 'podman run --cgroups=disabled --cap-add net_raw --name c -d --network overlay busybox /bin/busybox sleep 600'
done
for address in IPAddress GlobalIPv6Address; do
	to=$(on host2 "podman inspect -f '{{.NetworkSettings.Networks.overlay.$address}}' c")
	on host1 "podman exec c /bin/busybox ping -c 2 $to" || fail "the containers do not reach each other"
done

echo "an upgrade, as docs/operators.md has it"
line=$(lines docs/operators.md "## Start, stop, upgrade" | grep '^install')
echo "host1# $line"
on host1 "cd new && $line"
on host1 "systemctl is-active overlayd"

echo "subnet.env in flannel's place, as docs/from-flannel.md has it"
on host1 'echo "subnet_file: /run/flannel/subnet.env" >>/etc/overlayd/overlayd.yaml'
lines docs/from-flannel.md '## `subnet.env`' | grep '^mkdir\|^printf\|^systemctl' >"$work/flannel"
[ "$(wc -l <"$work/flannel")" = 3 ] || fail "docs/from-flannel.md has changed"
sed 's/^/host1# /' "$work/flannel"
on host1 "$(cat "$work/flannel")"
on host1 'grep FLANNEL_SUBNET /run/flannel/subnet.env'
on host1 'sed -i /subnet_file/d /etc/overlayd/overlayd.yaml; systemctl restart overlayd'

echo "the end"
before=$(on host1 "ip -br link show overlay0-v4")
[ -n "$before" ] || fail "no device for kernel paths"
both "## Stopping" . 'overlayd leave'
both "## 4. Start" "enable --now"
both "## Stopping" 'overlayd leave'
for h in host1 host2; do
	if on $h "ip -br link" | grep overlay; then fail "something is left"; fi
done
echo "passed"
