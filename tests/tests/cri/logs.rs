//! Log files as kubelet and collectors read them.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use tonic::Code;

use crate::node::{Node, idle, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("logs: each line has a time, its stream, a tag and the text", format);
    suite.add("logs: a line without an end, and one that is longer than the buffer", partial);
    suite.add("logs: after a rotation new lines go to the new file, and none is lost", rotation);
    suite.add("logs: a log that is gone is made again by ReopenContainerLog", recreated);
    suite.add("logs: an ended container's log is not reopened", reopen_ended);
    suite.add("logs: a megabyte at once arrives whole and in order", volume);
}

type Shared = Arc<Node>;

/// A line: stream, tag, text. Fails when the time is not RFC 3339 with nanoseconds.
fn parse(line: &str) -> Result<(&str, &str, &str)> {
    let mut parts = line.splitn(4, ' ');
    let time = parts.next().context("an empty line")?;
    time.parse::<jiff::Timestamp>().with_context(|| format!("time {time:?}"))?;
    let fraction = time.split_once('.').map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).count());
    ensure!(fraction == Some(9), "{time:?} has not nine digits after the point");
    let stream = parts.next().context("no stream")?;
    let tag = parts.next().context("no tag")?;
    Ok((stream, tag, parts.next().unwrap_or_default()))
}

async fn ended(node: &Node, text: &str) -> Result<String> {
    let config = node.pod("logs");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let id = node.launch(&pod, &config, &script("c", &image, text)).await?;
    let path = node.exited(&id).await?.log_path;
    fs::read_to_string(&path).with_context(|| format!("read {path}"))
}

async fn format(node: Shared) -> Result<()> {
    let log = ended(&node, "echo one; echo; echo '  two  words '; echo err >&2").await?;
    let lines: Vec<_> = log.lines().map(parse).collect::<Result<_>>()?;
    let out: Vec<_> = lines.iter().filter(|(stream, ..)| *stream == "stdout").collect();
    let err: Vec<_> = lines.iter().filter(|(stream, ..)| *stream == "stderr").collect();
    ensure!(out == [&("stdout", "F", "one"), &("stdout", "F", ""), &("stdout", "F", "  two  words ")], "{out:?}");
    ensure!(err == [&("stderr", "F", "err")], "{err:?}");
    let times: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(times.is_sorted(), "times run backwards: {times:?}");
    Ok(())
}

async fn partial(node: Shared) -> Result<()> {
    let log = ended(&node, "head -c 40000 /dev/zero | tr '\\0' x; echo; printf end").await?;
    let lines: Vec<_> = log.lines().map(parse).collect::<Result<_>>()?;
    let mut text = String::new();
    for (_, tag, part) in &lines {
        ensure!(part.len() <= 16384, "a piece of {} bytes", part.len());
        text.push_str(part);
        if *tag == "F" {
            text.push('\n');
        }
    }
    ensure!(text.trim_end() == format!("{}\nend", "x".repeat(40000)), "{} bytes", text.len());
    let tags: Vec<&str> = lines.iter().map(|(_, tag, _)| *tag).collect();
    ensure!(tags.iter().filter(|tag| **tag == "P").count() >= 2, "{tags:?}");
    Ok(())
}

/// A container that counts for ever, its configuration and the path of its log.
async fn counting(node: &Node) -> Result<(String, String)> {
    let config = node.pod("rotate");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let text = "trap 'exit 0' TERM; n=0; while :; do n=$((n + 1)); echo line $n; usleep 1000; done";
    let id = node.launch(&pod, &config, &script("c", &image, text)).await?;
    let path = node.status(&id).await?.log_path;
    node.log_with(&path, "line 5").await?;
    Ok((id, path))
}

async fn reopen(node: &Node, id: &str) -> Result<(), tonic::Status> {
    node.cri().runtime.reopen_container_log(ReopenContainerLogRequest { container_id: id.into() }).await.map(|_| ())
}

async fn rotation(node: Shared) -> Result<()> {
    let (id, path) = counting(&node).await?;
    let old = format!("{path}.20260102-030405");
    fs::rename(&path, &old)?;
    reopen(&node, &id).await?;
    ensure!(fs::metadata(&path).is_ok(), "the new file is not there when the call returns");
    let size = fs::metadata(&old)?.len();
    node.log_with(&path, "line ").await?;
    node.stop_container(&id, 10).await?;
    ensure!(fs::metadata(&old)?.len() == size, "the old file still grows");
    let mut numbers = Vec::new();
    for file in [&old, &path] {
        for line in fs::read_to_string(file)?.lines() {
            let (_, tag, text) = parse(line)?;
            ensure!(tag == "F", "{line:?}");
            numbers.push(text.strip_prefix("line ").context("another line")?.parse::<usize>()?);
        }
    }
    ensure!(numbers.iter().copied().eq(1..=numbers.len()), "lines are lost or out of order");
    Ok(())
}

async fn recreated(node: Shared) -> Result<()> {
    let (id, path) = counting(&node).await?;
    fs::remove_file(&path)?;
    reopen(&node, &id).await?;
    node.log_with(&path, "line ").await?;
    Ok(())
}

async fn reopen_ended(node: Shared) -> Result<()> {
    let config = node.pod("ended");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    let path = node.status(&id).await?.log_path;
    node.stop_container(&id, 10).await?;
    // nothing was written, so there may be no file
    let _ = fs::remove_file(&path);
    refused(reopen(&node, &id).await, Code::FailedPrecondition)?;
    ensure!(fs::metadata(&path).is_err(), "a file was made all the same");
    refused(reopen(&node, &"c".repeat(64)).await, Code::NotFound)?;
    Ok(())
}

async fn volume(node: Shared) -> Result<()> {
    let log = ended(&node, "seq 1 150000").await?;
    let mut expected = 1;
    for line in log.lines() {
        let (_, tag, text) = parse(line)?;
        ensure!(tag == "F" && text.parse() == Ok(expected), "{line:?} where {expected} should be");
        expected += 1;
    }
    ensure!(expected == 150_001, "ends after {}", expected - 1);
    Ok(())
}
