# Process 1 of a lab node: node.sh DIR NAME, in namespaces of its own. Reads
# orders (start, kill, pause, resume) line by line and answers "ok ORDER". Ends when its input
# does; the kernel then ends everything else in the process namespace. Needs
# bash: it collects orphaned processes while it waits for an order, which QEMU
# leaves when it goes to the background; dash does not.
set -eu
D=$1 N=$2
mount --make-rprivate /
mount -t proc proc /proc
# Without a cgroup tree in sight libvirt leaves its guests where they are, so
# nodes cannot collide on one name and keep the memory limits around them.
umount -R -l /sys/fs/cgroup 2>/dev/null || true
mount -t sysfs sysfs /sys
# Locks name their holder by its process ID, which means another one in each
# node: one that a node left behind would keep consoles locked in the next.
mkdir -p /var/lock
mount -t tmpfs tmpfs /var/lock
hostname "$N"
ip link set lo up
for f in hosts resolv.conf passwd group; do
  [ -e /etc/$f ] || : >/etc/$f
  mount --bind "$D/$f" /etc/$f
done
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
  mkdir -p "${pair#*:}"
  mount --bind "$D/${pair%%:*}" "${pair#*:}"
done
daemon=
while read -r order; do
  case $order in
  start)
    if [ -z "$daemon" ] || ! kill -0 "$daemon" 2>/dev/null; then
      rm -f /run/libvirt/libvirt-sock /run/libvirt/libvirt-sock-ro /run/libvirt/libvirtd.pid
      libvirtd -f /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid </dev/null >&2 &
      daemon=$!
    fi ;;
  kill)
    kill -9 "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon= ;;
  pause) kill -STOP "$daemon" ;;
  resume) kill -CONT "$daemon" ;;
  esac
  echo "ok $order"
done
