#!/bin/bash
# All checks of the packages, each on a clean Debian, and of the pages whose commands need
# systemd:
#
#	bash cmd/overlayd/package/check-all.sh bin/package
#
# Needs root, and mmdebstrap with a Debian mirror, or what that has made before (CLEAN=FILE.tar).
# All that it does is in a temporary directory and in namespaces of its own.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

if [ -z "${CLEAN:-}" ]; then
	CLEAN=$(mktemp --suffix=.tar "${TMPDIR:-/tmp}/overlayd-package.XXXXXX")
	trap 'rm -f "$CLEAN"' EXIT
	echo "=== a clean Debian"
	packages=nftables,systemd,systemd-sysv,procps,iproute2,iputils-ping
	packages+=,rpm,podman,containernetworking-plugins,crun,iptables,busybox-static
	mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$CLEAN" >/dev/null
fi
export CLEAN
for check in "check $1/overlayd_*.deb" "check-systemd $1/overlayd_*.deb" "check-rpm $1/overlayd-*.rpm" "check-docs $1/files/overlayd" "check-kubernetes $1/files/overlayd"; do
	read -r script file <<<"$check"
	echo "=== $script"
	bash "$here/$script.sh" $file # which is a pattern
done
