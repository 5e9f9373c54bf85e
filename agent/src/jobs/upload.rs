//! Uploads: a file goes to the hub from where the hub has it. Of a job's file only what its process
//! sends is seen here. The hub judges the hash of what it received, so a file that changes on the
//! way is caught.

use std::{io, time::Duration};

use jtnt_proto::job::Upload;
use tokio::io::AsyncRead;

use super::{
    download::hub,
    runner::{Context, Ended},
};
use crate::{
    domain::ids::JobId,
    hub::{
        HubClient, HubError, UploadPart,
        retry::{Retry, wanted},
    },
    shim::Source,
};

/// Sends what another process reads, over as many connections as it takes.
pub(super) async fn relay(
    context: &Context,
    id: &JobId,
    asked: &Upload,
    line: tokio::net::UnixStream,
) -> Result<(), Ended> {
    let gone = |_told_by_its_shim: io::Error| Ended::cut();
    let mut source = Source::new(line).await.map_err(gone)?;
    let size = source.size();
    if let Some(most) = context.limits.file_bytes.filter(|most| size > *most) {
        let message = format!("{size} bytes; limits.file_bytes is {most}");
        return Err(Ended::failed("TOO_LARGE", message));
    }
    let mut retry = Retry::default();
    loop {
        let hub = hub(&context.core).await?;
        let open = async |offset| source.from(offset).await;
        let pause = match append(&hub, (id, &asked.name), size, open).await {
            Ok(()) => {
                let sha256 = source.hash().await.map_err(gone)?;
                match hub.upload(id, &asked.name, UploadPart::Finish { size, sha256 }).await {
                    Ok(state) if state.complete => return source.done().await.map_err(gone),
                    Ok(_) => Duration::ZERO,
                    Err(error) => again(&error, &asked.path)?,
                }
            }
            Err(Stopped::Elsewhere) => Duration::ZERO,
            Err(Stopped::Unread(error)) => return Err(gone(error)),
            Err(Stopped::Hub(error)) => again(&error, &asked.path)?,
            Err(Stopped::TooMuch(received)) => {
                let message = format!("the hub has {received} bytes of a file of {size}");
                return Err(Ended::failed("FILE_CHANGED", message));
            }
        };
        tokio::time::sleep(retry.wait(pause, &*context.core.deps.entropy)).await;
    }
}

/// How long to wait before another try, where one makes sense.
#[expect(clippy::result_large_err, reason = "it is made once and returned at once")]
fn again(error: &HubError, path: &str) -> Result<Duration, Ended> {
    if error.is_transient() {
        return Ok(wanted(error));
    }
    // The hub's hash of what it received is another than ours of what was read.
    if matches!(error, HubError::Refused { status: 422, .. }) {
        let message = format!("{path} changed while it was read; try again");
        return Err(Ended::failed("FILE_CHANGED", message));
    }
    Err(Ended::failed("UPLOAD_REFUSED", error.to_string()))
}

#[derive(Debug)]
pub(super) enum Stopped {
    /// The hub stands at another place than this side thought: worth asking again.
    Elsewhere,
    Hub(HubError),
    /// The file cannot be read.
    Unread(io::Error),
    /// The hub has more of it than there is.
    TooMuch(u64),
}

impl From<HubError> for Stopped {
    fn from(error: HubError) -> Self {
        Self::Hub(error)
    }
}

/// Sends what the hub does not have of `size` bytes; `open` gives what there is from an offset on.
pub(super) async fn append<R>(
    hub: &HubClient,
    (id, name): (&JobId, &str),
    size: u64,
    open: impl AsyncFnOnce(u64) -> io::Result<R>,
) -> Result<(), Stopped>
where
    R: AsyncRead + Send + Unpin + 'static,
{
    let state = hub.upload(id, name, UploadPart::Ask).await?;
    if state.received > size {
        return Err(Stopped::TooMuch(state.received));
    }
    if state.complete || state.received == size {
        return Ok(());
    }
    let (offset, length) = (state.received, size - state.received);
    let bytes = Box::new(open(offset).await.map_err(Stopped::Unread)?);
    let state = hub.upload(id, name, UploadPart::Append { bytes, offset, length }).await?;
    if state.received == size { Ok(()) } else { Err(Stopped::Elsewhere) }
}
