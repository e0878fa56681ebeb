#!/bin/bash
# Runs the image of examples/kubernetes with the configuration, the arguments and the rights
# of daemonset.yaml, by podman, on two hosts: with no more than that a node comes to a path of
# the kernel's. There is no Kubernetes in it.
#
#	CLEAN=FILE.tar bash cmd/overlayd/package/check-kubernetes.sh bin/overlayd
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
manifest=$(dirname "${BASH_SOURCE[0]}")/../../../examples/kubernetes/daemonset.yaml

config=$(awk '/^  overlayd.yaml: \|/ { on = 1; next } /^[^ ]/ { on = 0 } on && sub(/^    /, "")' "$manifest")
[ -n "$config" ] || fail "no configuration in the manifest"
capabilities=$(sed -n 's/^ *add: \[\(.*\)\]$/\1/p' "$manifest" | tr -d ' ' | tr '[:upper:]' '[:lower:]')
arguments=$(sed -n 's/^ *args: \[\(.*\)\]$/\1/p' "$manifest" | tr -d ,)
mounts=
while read -r name at; do
	case $name in
	config) mounts+=" -v /root/config:$at:ro" ;;
	key) mounts+=" -v /root/key:$at:ro" ;;
	*) mounts+=" -v $at:$at" ;;
	esac
done < <(sed -n 's/^ *- {name: \([a-z]*\), mountPath: \([^,}]*\).*/\1 \2/p' "$manifest")

key=$("$1" key generate)
i=10
for h in host1 host2; do
	host "$h" "192.0.2.$((i += 1))" # as the manifest has its seeds
	cp "$1" "$work/root/$h/root/overlayd"
	boot "$h"
	on "$h" 'printf "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers\"\ngraphroot = \"/var/lib/containers\"\n" >/etc/containers/storage.conf'
	on "$h" 'tar -c overlayd | podman import -q - overlayd'
	on "$h" 'mkdir -p config key /var/lib/overlayd /run/overlayd; sysctl -qw net.ipv4.ip_forward=1'
	echo "$config" >"$work/root/$h/root/config/overlayd.yaml"
	echo "$key" >"$work/root/$h/root/key/key"
	chmod 400 "$work/root/$h/root/key/key"
	# Without control groups: podman needs privileges for them that a test machine may not have.
	on "$h" "systemd-run --quiet --unit pod podman run --cgroups=disabled --network host --name pod --read-only \
		--cap-drop all --cap-add $capabilities --security-opt no-new-privileges -e OVERLAYD_NAME=$h $mounts \
		--entrypoint /overlayd overlayd $arguments"
done
probe() { # HOST PATH: as kubelet does
	on "$1" 'exec 3<>/dev/tcp/127.0.0.1/9570; printf "GET '"$2"' HTTP/1.0\r\nHost: 127.0.0.1:9570\r\n\r\n" >&3; grep -q "^HTTP/1.0 200" <&3'
}
for h in host1 host2; do
	eventually 60 probe "$h" /readyz
	probe "$h" /healthz || fail "$h is not healthy"
done
on host1 './overlayd ping host2 --until direct' >/dev/null
on host1 './overlayd status'
if on host1 './overlayd status' | grep warnings; then fail "it lacks something"; fi
on host1 'podman stop -t 10 pod >/dev/null; ip link show overlay0-v4 >/dev/null' || fail "the kernel paths are gone with the pod"
echo "passed"
