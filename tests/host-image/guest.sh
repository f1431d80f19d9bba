#!/bin/bash
# Turns an unpacked Debian tree into a CentOS-like test host. Run in a mount namespace of its own:
#
#   guest.sh ROOT FOLDER       FOLDER has files/ (copied as they are) and packages/ (spec files of stand-in RPMs)
#
# ROOT has the packages of guest-packages.txt and what fetch.sh left. Leaves boot/{vmlinuz,initrd,manifest} for the builder to take.
set -euo pipefail
ROOT=$1 FOLDER=$2
# for the programs of the tree
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sys "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
in_root() { chroot "$ROOT" "$@"; }
put() { mkdir -p "$(dirname "$ROOT$1")"; cat > "$ROOT$1"; }               # put PATH < content

# Unpacked rather than installed: the kernel, because its installation would generate an initramfs, and firewalld, which
# conflicts with cloud-init on paper (in Debian 13). Only the modules that a node could want.
kernel_and_firewalld() {
  local work package
  work=$(mktemp -d)
  mkdir "$work/tree"
  for package in "$ROOT"/var/cache/testhost/*.deb; do dpkg -x "$package" "$work/tree"; done
  rm -r "$ROOT/var/cache/testhost"
  if [ -d "$work/tree/lib" ]; then cp -a "$work/tree/lib" "$work/tree/usr/"; fi     # /lib is a link in the target
  mv "$work"/tree/boot/vmlinuz-* "$ROOT/boot/vmlinuz"
  KERNEL=$(ls "$work/tree/usr/lib/modules")
  (cd "$work/tree/usr/lib/modules/$KERNEL/kernel" &&
    rm -rf sound drivers/{gpu,media,infiniband,staging,usb,iio,hid,hwmon,bluetooth,mtd,comedi,input,platform,scsi,ata} \
      drivers/net/{wireless,ethernet,usb} net/{mac80211,wireless,bluetooth,can} fs/{ocfs2,gfs2,btrfs,nfs,nfsd,cifs,smb,ceph,ntfs3})
  cp -a "$work"/tree/{etc,usr} "$ROOT/"
  rm -r "$work"
  in_root depmod "$KERNEL"
  in_root dpkg-query -W > "$ROOT/boot/manifest"
}

# Static busybox, the modules that lead to the root disk, and an init of three lines.
initrd() {
  local work number=10 file module
  work=$(mktemp -d)
  mkdir "$work"/{bin,m,dev,root}
  cp "$ROOT/bin/busybox" "$work/bin/"
  ln -s busybox "$work/bin/sh"
  for module in virtio_pci virtio_blk crc32c_generic ext4; do
    in_root modprobe -S "$KERNEL" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
    cp "$ROOT$file" "$work/m/$number-${file##*/}"
    number=$((number + 1))
    [[ $file != *.xz ]] || xz -d "$work"/m/*.xz
  done
  cat > "$work/init" <<'INIT'
#!/bin/sh
b=/bin/busybox; $b mount -t devtmpfs dev /dev; for m in /m/*; do $b insmod $m; done
until $b mount -t ext4 /dev/vda /root; do $b sleep 0.05; done
$b mount -o move /dev /root/dev; exec $b switch_root /root /sbin/init
INIT
  chmod +x "$work/init"
  (cd "$work" && find . | bin/busybox cpio -o -H newc 2>/dev/null) > "$ROOT/boot/initrd"
  rm -r "$work"
}

# That of the release whose systemd this is.
identity() {
  case $(in_root systemctl --version) in
    "systemd 252 "*) RELEASE=9 ;;
    "systemd 257 "*) RELEASE=10 ;;
    *) echo "guest.sh: no EL release has the systemd of this suite" >&2; exit 1 ;;
  esac
  put /usr/lib/os-release <<RELEASE
NAME="CentOS Stream"
VERSION="$RELEASE"
ID="centos"
ID_LIKE="rhel fedora"
VERSION_ID="$RELEASE"
PLATFORM_ID="platform:el$RELEASE"
PRETTY_NAME="CentOS Stream $RELEASE (test host made of Debian)"
RELEASE
  echo "CentOS Stream release $RELEASE" | tee "$ROOT/etc/centos-release" > "$ROOT/etc/redhat-release"
  echo node0 > "$ROOT/etc/hostname"
  : > "$ROOT/etc/machine-id"
  : > "$ROOT/etc/motd"
  in_root passwd -q -d root
}

# A local repository of stand-in packages, those of the base system installed from it.
packages() {
  local spec
  printf '%s\n' '%_dbpath /var/lib/rpm' "%dist .el$RELEASE" "%rhel $RELEASE" '%_unitdir /usr/lib/systemd/system' | put /etc/rpm/macros.testhost
  # rpm's plugin starts scriptlets in a domain that Debian 13's policy lacks, for a caller that it knows: they did not start
  [ "$RELEASE" != 10 ] || echo '%__transaction_selinux %{nil}' >> "$ROOT/etc/rpm/macros.testhost"
  mkdir -p "$ROOT/tmp/specs" "$ROOT/srv/repo"
  cp "$FOLDER"/packages/*.spec "$ROOT/tmp/specs/"
  for spec in "$ROOT"/tmp/specs/*.spec; do
    # Debian's plugins are programs of this machine in a package without one: no reason to stop
    in_root rpmbuild --quiet -bb --define '_topdir /tmp/rpm' --define '_buildhost localhost' --define '__os_install_post %{nil}' \
      --define '_binaries_in_noarch_packages_terminate_build 0' "/tmp/specs/${spec##*/}" 2>&1 | { grep -v '^warning: Arch dependent' >&2 || true; }
  done
  mv "$ROOT"/tmp/rpm/RPMS/*/*.rpm "$ROOT/srv/repo/"
  rm -r "$ROOT/tmp/rpm" "$ROOT/tmp/specs" "$ROOT/usr/lib/cni"
  in_root createrepo_c -q /srv/repo
  printf '[main]\nenabled=0\n' > "$ROOT/etc/dnf/plugins/local.conf"       # Debian turns it on, EL does not ship it
  # shellcheck disable=SC2016
  printf '%s\n' '[local]' 'name=stand-ins, $releasever $basearch' 'baseurl=file:///srv/repo' 'gpgcheck=0' | put /etc/yum.repos.d/local.repo
  in_root dnf -q -y --releasever="$RELEASE" install centos-stream-release testhost-base > "$ROOT/tmp/dnf.log" 2>&1 ||
    { cat "$ROOT/tmp/dnf.log" >&2; exit 1; }
  rm -rf "$ROOT"/var/cache/dnf/* "$ROOT"/var/log/dnf* "$ROOT/tmp/dnf.log"
}

# Debian's policy under EL's name. Domains that are unconfined in EL are logged here instead of stopped.
selinux() {
  local folder domain
  for folder in etc/selinux var/lib/selinux; do ln -s default "$ROOT/$folder/targeted"; done
  printf 'SELINUX=enforcing\nSELINUXTYPE=targeted\n' > "$ROOT/etc/selinux/config"
  for domain in initrc mount kmod fsadm dmesg udev firewalld syslogd kubelet system_dbusd chronyd \
    systemd_{tmpfiles,generator,journal_init,networkd,hostnamed,timedated,sysctl}; do
    # a type that the policy lacks may not be named
    ! grep -qa "${domain}_t" "$ROOT"/etc/selinux/default/policy/policy.* || echo "(typepermissive ${domain}_t)"
  done | put /tmp/testhost.cil
  in_root semodule -N -i /tmp/testhost.cil 2>/dev/null
  rm "$ROOT/tmp/testhost.cil"
  echo '/swapfile -- system_u:object_r:swapfile_t:s0' >> "$ROOT/etc/selinux/default/contexts/files/file_contexts.local"
}

# As an installer leaves it. Not of zero blocks: mke2fs -d makes holes of them, and swapon refuses a file with holes.
swap() {
  head -c 32M /dev/zero | tr '\0' U > "$ROOT/swapfile"
  chmod 600 "$ROOT/swapfile"
  in_root mkswap -q /swapfile
  echo '/swapfile none swap defaults 0 0' > "$ROOT/etc/fstab"
}

# EL's cloud-init.service does not stand before sysinit.target; Debian's does, and makes a cycle with firewalld and wait-online.
cloud_init() {
  local unit
  for unit in cloud-init.service cloud-init-network.service; do
    [ ! -f "$ROOT/usr/lib/systemd/system/$unit" ] ||
      sed '/^Before=sysinit.target/d; /^DefaultDependencies=no/d' "$ROOT/usr/lib/systemd/system/$unit" | put "/etc/systemd/system/$unit"
  done
}

# Units, generators and modules that cost a second each under emulation and that nobody here needs.
slim() {
  local unit generator
  for unit in getty.target getty-static.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer nftables.service sys-kernel-{debug,tracing,config}.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount ldconfig.service proc-sys-fs-binfmt_misc.automount modprobe@{drm,efi_pstore,configfs,fuse,dm_mod,loop}.service \
    systemd-{binfmt,network-generator,pstore,random-seed,hwdb-update,journal-catalog-update,firstboot,update-done,update-utmp}.service \
    systemd-{update-utmp-runlevel,machine-id-commit,boot-system-token}.service; do
    ln -sf /dev/null "$ROOT/etc/systemd/system/$unit"
  done
  mkdir -p "$ROOT/etc/systemd/system-generators"
  for generator in getty gpt-auto hibernate-resume cryptsetup veritysetup integritysetup sysv rc-local run ssh tpm2; do
    ln -sf /dev/null "$ROOT/etc/systemd/system-generators/systemd-$generator-generator"
  done
  printf 'blacklist %s\n' kvm_amd kvm_intel efi_pstore qemu_fw_cfg button serio_raw pcspkr i2c_i801 lpc_ich iTCO_wdt crct10dif_pclmul \
    crc32_pclmul ghash_clmulni_intel aesni_intel sha512_ssse3 sha256_ssse3 sha1_ssse3 | put /etc/modprobe.d/testhost.conf
}

kernel_and_firewalld
initrd
identity
packages
selinux
swap
cloud_init
slim
# Owner and mode are the host's, whoever has checked this out with whatever umask.
(cd "$FOLDER/files" && find . -type f | while read -r file; do
  mode=644
  [ ! -x "$file" ] || mode=755
  install -D -o root -g root -m "$mode" "$file" "$ROOT/$file"
done)
in_root systemctl -q enable systemd-networkd firewalld testhost-control testhost-shell.service testhost-registry.service
# No clock to ask: the control channel sets it.
in_root systemctl -q disable chrony
# Labels come last, so that no first boot has to relabel.
contexts=/etc/selinux/default
in_root setfiles -m -F -e /proc -e /sys -e /dev -c "$contexts/policy/$(ls "$ROOT$contexts/policy")" $contexts/contexts/files/file_contexts /
