#!/bin/busybox sh
# Process 1 of the tiny guest.
/bin/busybox mkdir -p /proc /sys /dev /mnt /run /tmp /etc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for m in $(cat /etc/modules); do insmod /lib/modules/$m.ko; done
acpid -d -c /etc/acpi >/dev/null 2>&1 &
hostname tiny
ip link set lo up
for nic in /sys/class/net/eth*; do [ -e $nic ] && ip link set ${nic##*/} up; done
for a in $(cat /proc/cmdline); do case $a in ip=*) ip addr add ${a#ip=} dev eth0 ;; esac; done
# The agent answers on the port that is named after it.
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] && /usr/sbin/qemu-ga -m virtio-serial -p /dev/${port##*/} -d -l /tmp/qemu-ga.log -f /run/qemu-ga.pid -t /run
done
# A seed is a CD-ROM; its drive may show up late.
for try in 1 2 3 4 5 6 7 8 9 10; do
  [ -e /sys/class/block/sr0 ] && break
  ls /sys/class/scsi_host/* >/dev/null 2>&1 || break
  usleep 200000
done
if [ -b /dev/sr0 ] && mount -t iso9660 -o ro /dev/sr0 /mnt && [ -e /mnt/meta-data ]; then
  echo "SEED-BEGIN"
  cat /mnt/meta-data
  echo "SEED-END"
  name=$(sed -n 's/^local-hostname: *//p' /mnt/meta-data | tr -d '"'"'")
  [ -n "$name" ] && hostname "$name"
fi
# poweroff and reboot ask process 1, which is this script: do it directly.
for f in poweroff reboot; do
  rm -f /bin/$f
  printf '#!/bin/sh\nsync; exec /bin/busybox %s -f\n' $f >/bin/$f
  chmod +x /bin/$f
done
[ -d /sys/firmware/efi ] && firmware=uefi || firmware=bios
echo "GUEST-READY $(hostname) firmware=$firmware uptime=$(cut -d' ' -f1 /proc/uptime) memory=$(awk '/MemTotal/{print $2}' /proc/meminfo)kB disks=$(ls /sys/class/block | tr '\n' ' ')"
(n=0; while true; do n=$((n + 1)); echo "tick $n"; sleep 1; done) &
while true; do
  printf '%s# ' "$(hostname)"
  read -r line || { sleep 1; continue; }
  sh -c "$line"
done
