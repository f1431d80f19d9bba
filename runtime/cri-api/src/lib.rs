//! The Kubernetes Container Runtime Interface, v1: messages, `runtime_service_client`, `runtime_service_server`,
//! `image_service_client`, `image_service_server`, generated from `proto/cri.proto`.
//!
//! v1alpha2 is a wire-compatible subset; the server offers it by rewriting the path, so it has no types of its own.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("runtime.v1");
