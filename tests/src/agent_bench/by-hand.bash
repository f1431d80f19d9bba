# What people write to make a host a node, and to look whether it still is one: the same steps as the agent's.
#   by-hand.bash first-boot|look
set -eu
waited=0

wait_for() { # wait_for COMMAND...: its time is not ours
  local began=${EPOCHREALTIME/./}
  "$@" > /dev/null
  waited=$((waited + ${EPOCHREALTIME/./} - began))
}

first_boot() {
  grep -qw overlay /proc/filesystems || modprobe overlay
  [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || modprobe br_netfilter
  printf 'overlay\nbr_netfilter\n' > /etc/modules-load.d/k8s.conf
  printf '%s = 1\n' net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables \
    > /etc/sysctl.d/99-k8s.conf
  sysctl -q -p /etc/sysctl.d/99-k8s.conf
  [ ! -e /etc/selinux/config ] || sed -i 's/^SELINUX=enforcing/SELINUX=permissive/' /etc/selinux/config
  [ "$(tail -n +2 /proc/swaps | wc -l)" = 0 ]
  sed -i '/\sswap\s/s/^/#/' /etc/fstab
  systemctl mask swap.target > /dev/null 2>&1
  cat > /etc/yum.repos.d/kubernetes.repo << 'END'
[kubernetes]
name=Kubernetes
baseurl=http://127.0.0.1:9/kubernetes/1.31/
gpgcheck=1
enabled=1
END
  wait_for dnf makecache
  rpm -q container-selinux iproute-tc kubelet kubeadm kubectl > /dev/null
  mkdir -p /etc/cni/net.d /var/lib/kubelet /etc/kubernetes/manifests /etc/systemd/system/kubelet.service.d
  echo '{}' > /etc/cni/net.d/10-pods.conflist
  printf 'runtime-endpoint: unix:///run/nodeagent/cri.sock\n' > /etc/crictl.yaml
  cat > /var/lib/kubelet/config.yaml << 'END'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/nodeagent/cri.sock
staticPodPath: /etc/kubernetes/manifests
END
  cat > /etc/systemd/system/kubelet.service.d/50-k8s.conf << 'END'
[Unit]
Wants=nodeagent-runtime.service
After=nodeagent-runtime.service
[Service]
ExecStart=
ExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml
END
  systemctl daemon-reload
  systemctl enable nodeagent-runtime kubelet > /dev/null 2>&1
  wait_for systemctl start nodeagent-runtime kubelet
  # a unit is up when it stays up
  wait_for sleep 2
  systemctl is-active nodeagent-runtime kubelet > /dev/null
  echo "waited $waited"
}

look() {
  grep -qw overlay /proc/filesystems
  [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]
  grep -qx overlay /etc/modules-load.d/k8s.conf && grep -qx br_netfilter /etc/modules-load.d/k8s.conf
  [ "$(sysctl -n net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables)" = $'1\n1\n1' ]
  grep -q ip_forward /etc/sysctl.d/99-k8s.conf
  [ ! -e /etc/selinux/config ] || grep -qx SELINUX=permissive /etc/selinux/config
  [ "$(tail -n +2 /proc/swaps | wc -l)" = 0 ]
  ! grep -E '^[^#]\S*\s+\S+\s+swap\s' /etc/fstab
  [ "$(systemctl is-enabled swap.target 2> /dev/null)" = masked ] || :
  grep -q '^baseurl=http://127.0.0.1:9/kubernetes/1.31/' /etc/yum.repos.d/kubernetes.repo
  rpm -q container-selinux iproute-tc kubelet kubeadm kubectl > /dev/null
  grep -q . /etc/cni/net.d/10-pods.conflist
  grep -q cri.sock /etc/crictl.yaml
  grep -q cri.sock /var/lib/kubelet/config.yaml
  grep -q config.yaml /etc/systemd/system/kubelet.service.d/50-k8s.conf
  systemctl -q is-enabled nodeagent-runtime kubelet
  systemctl -q is-active nodeagent-runtime kubelet
  [ "$(systemctl show -P NeedDaemonReload kubelet)" = no ]
  [ -S /run/nodeagent/cri.sock ]
}

case $1 in
  first-boot) first_boot ;;
  look) look ;;
  *) echo "first-boot or look" >&2; exit 64 ;;
esac
