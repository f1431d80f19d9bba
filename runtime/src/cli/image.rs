//! `nodeagent-runtime image …`

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::image::admin::{self, Event, Request};
use crate::image::{Explanation, Format, Images, PullProgress};
use crate::node::{image_socket, images_config};
use crate::telemetry::chain;

/// The registry cannot be reached or the daemon stops: the same command may work later.
const EXIT_TEMPORARY: u8 = 75;

/// What to do with images.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Print JSON for scripts
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// List the images of this node
    #[command(visible_alias = "ls")]
    List,
    /// Pull an image
    Pull {
        /// Name, with a tag or a digest
        reference: String,
    },
    /// Remove images with all their tags
    #[command(visible_alias = "remove")]
    Rm {
        /// Names, ids or beginnings of ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Import an OCI layout (directory or archive) or what `docker save` wrote, gzip and zstd included
    Import {
        /// File or directory
        path: PathBuf,
        /// Call the image so, whatever the file says
        #[arg(long, value_name = "REFERENCE")]
        name: Option<String>,
    },
    /// Write images to a new file that skopeo, Docker, podman and containerd can read
    Export {
        /// Names, ids or beginnings of ids
        #[arg(required = true)]
        images: Vec<String>,
        /// File or directory to make
        #[arg(long, short, value_name = "PATH")]
        output: PathBuf,
        /// An archive that is OCI layout and docker-archive in one, or the layout as a directory
        #[arg(long, default_value = "archive")]
        format: Format,
    },
    /// Say which registries and mirrors a name would be looked for at, and why, without asking them
    Explain {
        /// Name, short or whole
        name: String,
    },
}

impl ImageArgs {
    pub(super) fn run(self, config: &Config) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&format!("cannot start: {error}")),
        };
        runtime.block_on(self.carry_out(config))
    }

    async fn carry_out(self, config: &Config) -> ExitCode {
        let request = match self.request() {
            Ok(request) => request,
            Err(message) => return fail(&message),
        };
        let told = match begin(config, request).await {
            Ok(told) => told,
            Err(message) => return fail(&message),
        };
        match follow(told, self.quiet || self.json).await {
            Some(Event::Done(value)) => self.print(&value),
            Some(Event::Failed { message, temporary }) => {
                eprintln!("nodeagent-runtime: {message}");
                if temporary { ExitCode::from(EXIT_TEMPORARY) } else { ExitCode::FAILURE }
            }
            _ => fail("the daemon went away without an answer"),
        }
    }

    fn request(&self) -> Result<Request, String> {
        // the daemon has another working directory
        let absolute =
            |path: &PathBuf| std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(match &self.action {
            Action::List => Request::List {},
            Action::Pull { reference } => Request::Pull { reference: reference.clone() },
            Action::Rm { images } => Request::Remove { images: images.clone() },
            Action::Import { path, name } => Request::Import { path: absolute(path)?, name: name.clone() },
            Action::Export { images, output, format } => {
                Request::Export { images: images.clone(), path: absolute(output)?, format: *format }
            }
            Action::Explain { name } => Request::Explain { name: name.clone() },
        })
    }

    fn print(&self, value: &Value) -> ExitCode {
        if self.json {
            println!("{value:#}");
            return ExitCode::SUCCESS;
        }
        match &self.action {
            Action::List => print!("{}", table(value)),
            Action::Explain { .. } => match serde_json::from_value::<Explanation>(value.clone()) {
                Ok(explanation) => print!("{}", explained(&explanation)),
                Err(_) => println!("{value:#}"),
            },
            Action::Rm { .. } => each(value, |id| id.as_str().map(str::to_owned)),
            Action::Pull { .. } => println!("{}", value["id"].as_str().unwrap_or_default()),
            Action::Import { .. } => each(value, |image| {
                let names: Vec<&str> = image["tags"].as_array()?.iter().filter_map(Value::as_str).collect();
                Some(format!("{} {}", image["id"].as_str()?, names.join(" ")).trim_end().to_owned())
            }),
            Action::Export { .. } => println!("{}", value["path"].as_str().unwrap_or_default()),
        }
        ExitCode::SUCCESS
    }
}

/// Asks the daemon, or does it here when there is none. The store's lock decides when both are wrong about that.
async fn begin(config: &Config, request: Request) -> Result<mpsc::Receiver<Event>, String> {
    let socket = image_socket(config);
    match admin::ask(&socket, &request).await {
        Ok(Some(told)) => return Ok(told),
        Ok(None) => {}
        Err(error) => return Err(format!("cannot ask the daemon on {}: {error}", socket.display())),
    }
    let (events, told) = mpsc::channel(16);
    let images = Images::open(images_config(config)).await.map_err(|error| chain(&error))?;
    tokio::spawn(async move {
        admin::run(&images, request, events).await;
        images.shutdown().await;
    });
    Ok(told)
}

/// Shows progress on a terminal; the last event.
async fn follow(mut told: mpsc::Receiver<Event>, quiet: bool) -> Option<Event> {
    let bar = ProgressBar::with_draw_target(None, target(quiet));
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut last = None;
    while let Some(event) = told.recv().await {
        match event {
            Event::Progress(now) => show(&bar, &now),
            other => last = Some(other),
        }
    }
    bar.finish_and_clear();
    last
}

fn target(quiet: bool) -> ProgressDrawTarget {
    if quiet || !std::io::stderr().is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

fn show(bar: &ProgressBar, now: &PullProgress) {
    bar.set_message(format!("{} layer {}/{}", now.image, now.layers, now.layers_total));
    bar.set_length(now.bytes_total.max(1));
    bar.set_position(now.bytes.min(now.bytes_total));
}

fn each(value: &Value, line: impl Fn(&Value) -> Option<String>) {
    for entry in value.as_array().into_iter().flatten() {
        if let Some(line) = line(entry) {
            println!("{line}");
        }
    }
}

fn table(value: &Value) -> String {
    let mut rows = vec![["IMAGE", "ID", "SIZE", "LAYERS", "PINNED"].map(str::to_owned)];
    for image in value.as_array().into_iter().flatten() {
        let names = image["tags"].as_array().filter(|tags| !tags.is_empty()).or_else(|| image["digests"].as_array());
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let size = indicatif::HumanBytes(image["size"].as_u64().unwrap_or_default()).to_string();
        let pinned = if image["pinned"].as_bool() == Some(true) { "yes" } else { "" };
        let names: Vec<&str> = names.into_iter().flatten().filter_map(Value::as_str).collect();
        for name in if names.is_empty() { vec!["<none>"] } else { names } {
            let layers = image["layers"].to_string();
            rows.push([name.to_owned(), id.chars().take(12).collect(), size.clone(), layers, pinned.to_owned()]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn explained(explanation: &Explanation) -> String {
    let mut text = String::new();
    for candidate in &explanation.candidates {
        text.push_str(&format!("{}: {} {}\n", candidate.reference, explanation.name, candidate.why));
        for (number, endpoint) in candidate.endpoints.iter().enumerate() {
            text.push_str(&format!("  {}. {}\n     {}\n", number + 1, endpoint.url, endpoint.why));
            text.push_str(&format!("     TLS: {}\n     credentials: {}\n", endpoint.tls, endpoint.credentials));
            if let Some(proxy) = &endpoint.proxy {
                text.push_str(&format!("     proxy: {proxy}\n"));
            }
            if !endpoint.headers.is_empty() {
                text.push_str(&format!("     headers: {}\n", endpoint.headers.join(", ")));
            }
        }
        if let Some(refused) = &candidate.refused {
            text.push_str(&format!("  refused: {refused}\n"));
        }
        text.push_str(&format!("  policy {}\n", candidate.policy));
    }
    text
}

fn fail(message: &str) -> ExitCode {
    eprintln!("nodeagent-runtime: {message}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_has_a_line_for_each_name() {
        let images = json!([
            { "id": "sha256:0123456789abcdef", "tags": ["a.example/b:1", "a.example/b:2"], "digests": [], "size": 2048,
              "pinned": true, "layers": 3 },
            { "id": "sha256:fedcba9876543210", "tags": [], "digests": ["c.example/d@sha256:1"], "size": 0,
              "pinned": false, "layers": 1 },
        ]);
        assert_eq!(
            table(&images),
            "IMAGE                 ID            SIZE      LAYERS  PINNED\n\
             a.example/b:1         0123456789ab  2.00 KiB  3       yes\n\
             a.example/b:2         0123456789ab  2.00 KiB  3       yes\n\
             c.example/d@sha256:1  fedcba987654  0 B       1\n"
        );
    }
}
