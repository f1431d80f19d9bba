//! Pods: one task each, which owns the state of the pod and of its containers.
