//! Pulls an image into a directory and says what it cost: `pull ROOT REFERENCE...`, several at once when several are
//! named. For measurements; the daemon does the same.

use std::time::Instant;

use nodeagent_runtime::image::{Images, ImagesConfig};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().ok_or_else(|| anyhow::anyhow!("usage: pull ROOT REFERENCE..."))?;
    let images = Images::open(ImagesConfig::new(root)).await?;
    let started = Instant::now();
    let pulls: Vec<_> = arguments
        .map(|reference| {
            let images = images.clone();
            tokio::spawn(async move { images.pull(&reference, None).await })
        })
        .collect();
    for pull in pulls {
        let image = pull.await??;
        println!("{} {} bytes compressed", image.id, image.size);
    }
    let elapsed = started.elapsed();
    let peak = std::fs::read_to_string("/proc/self/status")?;
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    println!("{:.3} s, peak memory {}, {:?}", elapsed.as_secs_f64(), peak.trim(), images.usage());
    Ok(())
}
