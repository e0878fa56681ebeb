# Sourced by the checks of the packages: hosts that are network namespaces with a clean
# Debian each, of CLEAN=FILE.tar (see check-all.sh), which can be booted. Everything is gone
# when the script ends. Needs root.

# The mounts are in a namespace of the script's own.
if [ -z "${OVERLAYD_HOSTS:-}" ]; then
	OVERLAYD_HOSTS=1 exec unshare --mount --propagation private bash "$0" "$@"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/overlayd-package.XXXXXX")
declare -A init # by host: the process id of its systemd
hosts=()

fail() { echo "FAILED: $*" >&2; exit 1; }

# clean takes everything down, also after a failure.
clean() {
	local code=$? h pid
	for h in "${hosts[@]}"; do
		shutdown "$h"
		ip netns pids "ovl$$-$h" | while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done
		ip netns del "ovl$$-$h" 2>/dev/null || true
	done
	for _ in $(seq 50); do # until the last process is gone
		find "$work/cgroup/ovl$$" -depth -type d -exec rmdir {} \; 2>/dev/null || true
		[ -d "$work/cgroup/ovl$$" ] || break
		pause 0.1
	done
	umount -R -l "$work"/root/* "$work/cgroup" 2>/dev/null || true
	rm -rf --one-file-system "$work"
	exit "$code"
}
trap clean EXIT

# What all hosts begin with, below their own changes.
mkdir -p "$work/clean" "$work/cgroup"
tar -xf "${CLEAN:?}" -C "$work/clean"
ip netns add "ovl$$-switch"
hosts+=(switch)
ip -n "ovl$$-switch" link add br0 type bridge
ip -n "ovl$$-switch" link set br0 up

# host NAME ADDRESS: a host with a root of its own, $work/root/NAME, and an eth0.
host() {
	local ns=ovl$$-$1 d=$work/root/$1 f
	hosts+=("$1")
	mkdir -p "$d" "$work/upper/$1" "$work/work/$1"
	mount -t overlay -o "lowerdir=$work/clean,upperdir=$work/upper/$1,workdir=$work/work/$1" overlay "$d"
	echo "$1" >"$d/etc/hostname"
	# Settings of the kernel that all hosts share are none of theirs.
	for f in "$d"/usr/lib/sysctl.d/*.conf; do ln -s /dev/null "$d/etc/sysctl.d/${f##*/}"; done
	ip netns add "$ns"
	ip -n "$ns" link set lo up
	ip -n "$ns" link add eth0 type veth peer name "$1" netns "ovl$$-switch"
	ip -n "ovl$$-switch" link set "$1" master br0 up
	ip -n "$ns" addr add "$2/24" dev eth0
	ip -n "$ns" link set eth0 up
}

# inside HOST COMMAND...: in a host on which nothing runs. Each step becomes the next one, so
# that a signal reaches the last.
inside=(sh -ec '
	root=$1; shift
	mount -t proc proc "$root/proc"
	mount -t tmpfs tmpfs "$root/dev"
	mkdir "$root/dev/net"
	for d in null zero random urandom; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
	mknod -m 666 "$root/dev/net/tun" c 10 200 # as udev does it
	exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
' sh)
inside() {
	local h=$1; shift
	local all=(ip netns exec "ovl$$-$h" unshare --mount --propagation private "${inside[@]}" "$work/root/$h" "$@")
	[ "$BASHPID" = $$ ] || exec "${all[@]}" # so that $! is the command
	"${all[@]}"
}

# boot HOST: its systemd, with namespaces for all that it changes: of /proc/sys only net is
# its own.
boot=(sh -ec '
	root=$1
	mount -t proc proc "$root/proc"
	mount --bind "$root/proc/sys" "$root/proc/sys"
	mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
	mount -o remount,bind,ro "$root/proc/sys"
	mount -t sysfs -o ro sysfs "$root/sys"
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
	mount -t tmpfs -o mode=755 tmpfs "$root/run"
	mount -t tmpfs -o mode=755 tmpfs "$root/dev"
	mkdir "$root/dev/net" "$root/dev/shm"
	for d in null zero full random urandom tty; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
	mknod -m 666 "$root/dev/net/tun" c 10 200
	hostname "$2"
	cd "$root"
	mkdir -p mnt
	pivot_root . mnt
	umount -l /mnt
	exec env -i container=other /lib/systemd/systemd --log-target=journal --show-status=false
' sh)
boot() {
	local h=$1 n pid cgroup=$work/cgroup/ovl$$/$1
	mountpoint -q "$work/cgroup" || mount -t cgroup2 cgroup2 "$work/cgroup"
	mkdir -p "$cgroup"
	# The namespace of control groups begins where the process is that makes it.
	sh -ec 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$cgroup" ip netns exec "ovl$$-$h" \
		unshare --mount --propagation private --pid --uts --ipc --cgroup --fork --kill-child \
		"${boot[@]}" "$work/root/$h" "$h" >"$work/$h.log" 2>&1 </dev/null &
	pid=$!
	disown "$pid" # nobody wants to read that it was killed
	for _ in $(seq 100); do
		n=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null || true)
		init[$h]=${n% }
		case $([ -z "${init[$h]}" ] || on "$h" systemctl is-system-running 2>/dev/null || true) in
		running | degraded) return ;;
		esac
		kill -0 "$pid" 2>/dev/null || break
		pause 0.2
	done
	cat "$work/$h.log" >&2
	fail "systemd does not come up on $h"
}

# on HOST COMMANDS: a shell's commands on a booted host.
on() {
	local h=$1; shift
	nsenter -t "${init[$h]}" --mount --pid --net --uts --ipc --cgroup env -i \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
		bash -c "cd /root; $*" </dev/null
}

# shutdown HOST ends all that runs on it.
shutdown() {
	[ -z "${init[$1]:-}" ] || kill -KILL "${init[$1]}" 2>/dev/null || true
	init[$1]=
}

pause() { read -rt "$1" <> <(:) || true; }

# eventually TIMES COMMAND...: until it succeeds, at most so many times in as many half seconds.
eventually() {
	local times=$1; shift
	while ! "$@" >/dev/null 2>&1; do
		[ $((times -= 1)) -gt 0 ] || fail "it does not come about: $*"
		pause 0.5
	done
}
