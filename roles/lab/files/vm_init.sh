# shellcheck shell=dash
# PID 1 of a VM node's initial RAM disk: find the disk, give the node its identity at its first start, hand over.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b insmod /virtio_blk.ko
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o noatime /dev/vda /root
if ! $b cmp -s /identity.tar /root/var/lib/lab-identity; then
    $b tar -x -f /identity.tar -C /root
    (umask 077 && $b cp /identity.tar /root/var/lib/lab-identity)
fi
$b mount -o move /dev /root/dev
exec $b switch_root /root /sbin/init
