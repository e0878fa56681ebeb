#!/bin/bash
# Runs the image of examples/kubernetes with the configuration, the arguments and the rights
# of daemonset.yaml, by podman, on two hosts: with no more than that a node comes to a path of
# the kernel's. There is no Kubernetes in it.
#
#	CLEAN=FILE.tar bash cmd/overlayd/package/check-kubernetes.sh bin/overlayd
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
manifest=$(dirname "${BASH_SOURCE[0]}")/../../../examples/kubernetes/daemonset.yaml

file() { # NAME: that file of the ConfigMap
	awk -v head="  $1: |" '/^ ? ?[^ ]/ { on = 0 } on && sub(/^    /, "") { print } $0 == head { on = 1 }' "$manifest"
}
part() { # HEAD: what stands under the line "      HEAD:"
	awk -v head="      $1:" '/^ ? ? ? ? ? ?[^ ]/ { on = 0 } on { print } $0 == head { on = 1 }' "$manifest"
}
mounts() { # HEAD: of the containers in that part, as podman's arguments
	part "$1" | sed -n 's/^ *- {name: \([a-z]*\), mountPath: \([^,}]*\).*/\1 \2/p' | while read -r name at; do
		case $name in
		config) echo "-v /root/config:$at:ro" ;;
		key) echo "-v /root/key:$at:ro" ;;
		*) echo "-v ${at#/host}:$at" ;;
		esac
	done
}
network=10-overlay.conflist
for f in overlayd.yaml $network; do [ -n "$(file $f)" ] || fail "no $f in the manifest"; done
capabilities=$(part containers | sed -n 's/^ *add: \[\(.*\)\]$/\1/p' | tr -d ' ' | tr '[:upper:]' '[:lower:]')
arguments=$(part containers | sed -n 's/^ *args: \[\(.*\)\]$/\1/p' | tr -d ,)
installs=$(part initContainers | sed -n 's/^ *command: \[\(.*\)\]$/\1/p' | tr -d ,)
[ -n "$capabilities" ] && [ -n "$arguments" ] && [ -n "$installs" ] || fail "the manifest is not read"
# Without control groups: podman needs privileges for them that a test machine may not have.
limits="--cgroups=disabled --network host --read-only --cap-drop all --security-opt no-new-privileges"

key=$("$1" key generate)
i=10
for h in host1 host2; do
	host "$h" "192.0.2.$((i += 1))" # as the manifest has its seeds
	mkdir "$work/root/$h/root/image"
	cp "$1" "$1-cni" "$work/root/$h/root/image/"
	boot "$h"
	on "$h" 'printf "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers\"\ngraphroot = \"/var/lib/containers\"\n" >/etc/containers/storage.conf'
	on "$h" 'tar -c -C image . | podman import -q - overlayd'
	on "$h" 'mkdir -p config key /var/lib/overlayd /run/overlayd /opt/cni/bin /etc/cni/net.d; sysctl -qw net.ipv4.ip_forward=1'
	for f in overlayd.yaml $network; do file $f >"$work/root/$h/root/config/$f"; done
	echo "$key" >"$work/root/$h/root/key/key"
	chmod 400 "$work/root/$h/root/key/key"
	on "$h" "podman run --rm $limits $(mounts initContainers | tr '\n' ' ') --entrypoint ${installs%% *} overlayd ${installs#* }"
	on "$h" "cmp image/overlayd-cni /opt/cni/bin/overlayd-cni && test -x /opt/cni/bin/overlayd-cni && cmp config/$network /etc/cni/net.d/$network" ||
		fail "the CNI plugin is not installed"
	on "$h" "systemd-run --quiet --unit pod podman run $limits --name pod --cap-add $capabilities -e OVERLAYD_NAME=$h $(mounts containers | tr '\n' ' ') \
		--entrypoint /overlayd overlayd $arguments"
done
probe() { # HOST PATH: as kubelet does
	on "$1" 'exec 3<>/dev/tcp/127.0.0.1/9570; printf "GET '"$2"' HTTP/1.0\r\nHost: 127.0.0.1:9570\r\n\r\n" >&3; grep -q "^HTTP/1.0 200" <&3'
}
for h in host1 host2; do
	eventually 60 probe "$h" /readyz
	probe "$h" /healthz || fail "$h is not healthy"
done
on host1 'image/overlayd ping host2 --until direct' >/dev/null
on host1 'image/overlayd status'
if on host1 'image/overlayd status' | grep warnings; then fail "it lacks something"; fi
on host1 'podman stop -t 10 pod >/dev/null; ip link show overlay0-v4 >/dev/null' || fail "the kernel paths are gone with the pod"
echo "passed"
