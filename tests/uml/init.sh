#!/bin/sh
# The first process of a user-mode kernel: gives it the host's files to change as it likes, then runs OUT/command.
#
# Its root is an overlay: below are the host's files, read-only, above a tmpfs. The one place through which anything
# gets out is OUT, a folder of the host's, which the kernel's command line names and which is /mnt/out here.
# OUT/status gets the command's exit status at the very end: a kernel that panics ends without one.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
kernel=$(uname -r)
modules=/usr/lib/uml/modules/$kernel

mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/lib/modules /run/upper /run/work /run/root
ln -s "$modules" /run/lib/modules/
modprobe -d /run overlay
mount -t overlay overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work /run/root
cd /run/root || exit
mkdir -p lib/modules mnt/out below
ln -s "$modules" lib/modules/
# This kernel has nothing of nftables that iptables could stand on.
for program in iptables ip6tables; do
    for what in "" -save -restore; do
        ln -sf "/usr/sbin/$program-legacy$what" "etc/alternatives/$program$what"
    done
done
mount --move /dev dev
mount --move /proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mkdir -p dev/shm dev/pts
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t hostfs none mnt/out -o "$OUT"
pivot_root . below
umount -l /below

exec >/mnt/out/log 2>&1
cp /mnt/out/populate.so /usr/lib/
echo /usr/lib/populate.so >/etc/ld.so.preload
# What the kernel would load one by one, with a process each.
modprobe -a veth bridge ipip vxlan sch_ingress cls_u32 act_mirred nf_conntrack_netlink \
    iptable_filter iptable_nat iptable_mangle iptable_raw ip6table_filter ip6table_nat ip6table_mangle ip6table_raw \
    xt_addrtype xt_comment xt_connmark xt_conntrack xt_CT xt_limit xt_mark xt_MASQUERADE xt_multiport xt_nat xt_NFLOG \
    xt_set xt_tcpudp xt_TCPMSS ipt_REJECT ip6t_REJECT \
    ip_set_hash_ip ip_set_hash_net ip_set_hash_ipport ip_set_hash_netiface ip_set_bitmap_port ip_set_list_set
hostname uml
ip link set lo up
sh /mnt/out/command
echo $? >/mnt/out/status
sync
echo o >/proc/sysrq-trigger
sleep 10
