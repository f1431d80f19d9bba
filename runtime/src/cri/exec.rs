//! Commands in running containers, their output collected.

use nodeagent_cri_api::{ExecSyncRequest, ExecSyncResponse};
use tonic::Status;

use super::{Cri, status};
use crate::container;

pub(super) async fn exec_sync(cri: &Cri, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let (pod, id) = cri.container(&request.container_id)?;
    let executed = container::exec(&pod, &id, &request.cmd, request.timeout).await.map_err(status::container)?;
    Ok(ExecSyncResponse {
        stdout: executed.stdout.into(),
        stderr: executed.stderr.into(),
        exit_code: executed.exit_code,
    })
}
