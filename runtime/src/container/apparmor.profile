# What a container may not do, whatever its capabilities: mount, change the host through /proc and /sys, trace or signal others.
# As strict as the default profiles of other runtimes, so that an image that runs under theirs runs under this one.
profile nodeagent-default flags=(attach_disconnected,mediate_deleted) {
  network,
  unix,
  capability,
  file,
  umount,

  # its supervisor is not confined; runc and crun, as runtime handlers, may have profiles by these names that allow everything
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer=nodeagent-default,
  ptrace (trace,read,tracedby,readby) peer=nodeagent-default,

  deny mount,

  # of /proc, what is not of processes; of its sys, all but kernel/shm*, which is the pod's own
  deny /proc/* w,
  deny /proc/[^0-9s/]*/** w,
  deny /proc/s[^y/]*/** w,
  deny /proc/sy[^s/]*/** w,
  deny /proc/sys?*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s]**,s[^h]**,sh[^m]**} w,
  deny /proc/{kcore,sysrq-trigger} rwklx,

  # of /sys, all but cgroups
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
