//! dnf and rpm as programs: there is no stable interface below them on EL 8 to 10.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::OnceCell;

use super::Host;
use super::command::{Command, CommandError, Output, tail};
use super::systemd::{SystemdError, Transient};
use crate::plan::{DnfOp, Undo};

const DNF: &str = "/usr/bin/dnf";
const RPM: &str = "/usr/bin/rpm";

/// A transaction over a slow mirror, behind cloud-init's own that holds the lock. dnf waits for that lock by itself.
const TRANSACTION: Duration = Duration::from_secs(30 * 60);

/// Questions that dnf answers from its own database.
const QUESTION: Duration = Duration::from_secs(120);

/// Metadata over a slow mirror; dnf itself gives up on one that is dead after a minute.
const PROBE: Duration = Duration::from_secs(600);

/// Where a transaction that runs as a unit of its own leaves its output.
const OUTPUT_DIR: &str = "/run/nodeagent/dnf";

/// Why packages were not changed.
#[derive(Debug, thiserror::Error)]
pub enum DnfError {
    /// The program.
    #[error("dnf {what}")]
    Run {
        /// Subcommand.
        what: &'static str,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The unit that the program ran in.
    #[error("dnf {what}, as a unit of its own")]
    Unit {
        /// Subcommand.
        what: &'static str,
        /// Why.
        #[source]
        source: SystemdError,
    },
    /// Its output file.
    #[error("dnf {what}: output")]
    Output {
        /// Subcommand.
        what: &'static str,
        /// Why.
        #[source]
        source: super::root::RootError,
    },
    /// A repository does not answer.
    #[error("dnf {what}: repository {repo} cannot be used: {stderr}")]
    Repository {
        /// Subcommand.
        what: &'static str,
        /// Its id.
        repo: String,
        /// What dnf said.
        stderr: String,
    },
    /// No enabled repository has the package.
    #[error("dnf {what}: no repository offers {packages}")]
    NoPackage {
        /// Subcommand.
        what: &'static str,
        /// As asked for.
        packages: String,
    },
    /// Any other failure.
    #[error("dnf {what} ended with status {code}: {stderr}")]
    Failed {
        /// Subcommand.
        what: &'static str,
        /// Exit status.
        code: i32,
        /// What dnf said.
        stderr: String,
    },
}

/// What a transaction left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// dnf's number; none when there was nothing to do.
    pub id: Option<u64>,
}

impl Transaction {
    /// What takes it back.
    pub fn undo(&self) -> Undo {
        self.id.map_or(Undo::Nothing, |transaction| Undo::DnfUndo { transaction })
    }

    /// For the report.
    pub fn note(&self) -> Option<String> {
        self.id.map(|id| format!("dnf transaction {id}"))
    }
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Without epoch.
    pub version: String,
    /// Release.
    pub release: String,
    /// Architecture.
    pub arch: String,
}

impl Installed {
    /// `VERSION-RELEASE`
    pub fn evr(&self) -> String {
        format!("{}-{}", self.version, self.release)
    }
}

/// One question to rpm for everybody who looks at the same time. Asked when the first of them wants to know.
#[derive(Debug, Default)]
pub struct PackageQuery {
    names: BTreeSet<String>,
    answer: OnceCell<BTreeMap<String, Installed>>,
}

impl PackageQuery {
    /// About these packages.
    pub fn about(names: impl IntoIterator<Item = String>) -> PackageQuery {
        PackageQuery { names: names.into_iter().collect(), answer: OnceCell::new() }
    }

    /// Those that are installed.
    pub async fn answer(&self, host: &Host) -> Result<&BTreeMap<String, Installed>, CommandError> {
        let names: Vec<String> = self.names.iter().cloned().collect();
        self.answer.get_or_try_init(|| installed(host, &names)).await
    }
}

/// Which of the packages are installed: one query for all of them, of names alone.
async fn installed(host: &Host, names: &[String]) -> Result<BTreeMap<String, Installed>, CommandError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    // rpm exits with the number of names that it does not know: its code says nothing about failure
    let command = Command::query(RPM, QUESTION)
        .args(["-q", "--qf", "%{NAME}\\t%{VERSION}\\t%{RELEASE}\\t%{ARCH}\\n", "--"])
        .args(names.iter().cloned());
    let output = host.commands.run(&command).await?;
    let found = parse_installed(&output.stdout);
    let understood = found.len() + output.stdout.lines().filter(|line| line.ends_with("is not installed")).count();
    if understood == 0 {
        return output.success(&command).map(|_| found);
    }
    Ok(found)
}

fn parse_installed(stdout: &str) -> BTreeMap<String, Installed> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, version, release, arch] = fields[..] else { return None };
        let package = Installed { version: version.to_owned(), release: release.to_owned(), arch: arch.to_owned() };
        Some((name.to_owned(), package))
    };
    // of a package that is installed more than once (kernels) the last counts: rpm lists by time of installation
    stdout.lines().filter_map(line).collect()
}

/// Does a transaction, and finds its number in dnf's history.
pub async fn transaction(
    host: &Host,
    op: DnfOp,
    packages: &[String],
    options: &[String],
) -> Result<Transaction, DnfError> {
    let what = match op {
        DnfOp::Install => "install",
        DnfOp::Upgrade => "upgrade",
        DnfOp::Remove => "remove",
    };
    let command = dnf(TRANSACTION).args(options.iter().cloned()).arg(what).args(packages.iter().cloned());
    let output = run(host, what, &command).await?;
    check(what, &output, packages)?;
    numbered(host, &output).await
}

/// With its number, if it did anything.
async fn numbered(host: &Host, output: &Output) -> Result<Transaction, DnfError> {
    if output.stdout.lines().any(|line| line.trim() == "Nothing to do.") {
        return Ok(Transaction { id: None });
    }
    // the packages are in place: not to know the number only costs the undo
    let id = last_transaction(host).await.unwrap_or_else(|error| {
        log::warn!("{error}: this transaction cannot be undone by its number");
        None
    });
    Ok(Transaction { id })
}

/// Takes a transaction back, by another one.
pub async fn undo(host: &Host, transaction: u64) -> Result<Transaction, DnfError> {
    let what = "history undo";
    let command = dnf(TRANSACTION).args(["history", "undo"]).arg(transaction.to_string());
    let output = run(host, what, &command).await?;
    check(what, &output, &[])?;
    numbered(host, &output).await
}

/// Has dnf ask the repositories again.
pub async fn clean_metadata(host: &Host) -> Result<(), DnfError> {
    let what = "clean";
    let command = dnf(QUESTION).args(["clean", "expire-cache"]);
    let output = host.commands.run(&command).await.map_err(|source| DnfError::Run { what, source })?;
    check(what, &output, &[])
}

/// Asks one repository for its metadata: it works when it answers, whatever its file says.
pub async fn probe(host: &Host, repo: &str) -> Result<(), DnfError> {
    let what = "makecache";
    let mut command = dnf(PROBE).args(["--disablerepo=*".to_owned(), format!("--enablerepo={repo}")]).args([
        "--setopt=skip_if_unavailable=False",
        "--refresh",
        "makecache",
    ]);
    command.reads_only = true;
    let output = host.commands.run(&command).await.map_err(|source| DnfError::Run { what, source })?;
    check(what, &output, &[])
}

fn dnf(deadline: Duration) -> Command {
    // A mirror that hangs must not hold a boot for dnf's default of minutes per file. Weak dependencies pull in programs that
    // nobody asked for on a node.
    Command::new(DNF, deadline).args([
        "-y",
        "--color=never",
        "--setopt=timeout=20",
        "--setopt=retries=3",
        "--setopt=install_weak_deps=False",
    ])
}

async fn last_transaction(host: &Host) -> Result<Option<u64>, DnfError> {
    let what = "history info";
    let mut command = dnf(QUESTION).args(["history", "info"]);
    command.reads_only = true;
    let output = host.commands.run(&command).await.map_err(|source| DnfError::Run { what, source })?;
    check(what, &output, &[])?;
    Ok(parse_transaction(&output.stdout))
}

fn parse_transaction(stdout: &str) -> Option<u64> {
    let line = stdout.lines().find(|line| line.trim_start().starts_with("Transaction ID"))?;
    line.split_once(':')?.1.trim().split("..").last()?.parse().ok()
}

/// Runs a transaction. Inside a unit it gets a unit of its own: a scriptlet that restarts or reloads ours must not end dnf in
/// the middle of its database.
async fn run(host: &Host, what: &'static str, command: &Command) -> Result<Output, DnfError> {
    if !host.inside_unit {
        return host.commands.run(command).await.map_err(|source| DnfError::Run { what, source });
    }
    let failed = |source| DnfError::Output { what, source };
    let stem = format!("{OUTPUT_DIR}/{}", std::process::id());
    let (output, errors) = (format!("{stem}.out"), format!("{stem}.err"));
    let private = super::root::Ownership { mode: 0o600, uid: 0, gid: 0 };
    for path in [&output, &errors] {
        host.root.write(path, b"", private).map_err(failed)?;
    }
    let unit = Transient {
        name: format!("nodeagent-dnf-{}.service", std::process::id()),
        description: format!("nodeagent: dnf {what}"),
        command: std::iter::once(command.program.clone()).chain(command.args.iter().cloned()).collect(),
        // our own runner has it from the start: messages are parsed
        env: std::iter::once(("LC_ALL".to_owned(), "C.UTF-8".to_owned())).chain(command.env.iter().cloned()).collect(),
        output: output.clone(),
        errors: errors.clone(),
        deadline: command.deadline,
    };
    let ended = host.systemd.run_transient(&unit).await;
    let read = |path: &str| -> Result<String, DnfError> {
        let bytes = host.root.read(path).map_err(failed)?.unwrap_or_default();
        host.root.remove(path).map_err(failed)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (stdout, stderr) = (read(&output)?, read(&errors)?);
    let code = ended.map_err(|source| DnfError::Unit { what, source })?;
    Ok(Output { code: Some(code), stdout, stderr })
}

/// Turns dnf's ways to fail into errors that say what to look at.
fn check(what: &'static str, output: &Output, packages: &[String]) -> Result<(), DnfError> {
    let code = output.code.unwrap_or(-1);
    if code == 0 {
        return Ok(());
    }
    let stderr = output.stderr.as_str();
    if let Some(repo) = unusable_repository(stderr) {
        return Err(DnfError::Repository { what, repo, stderr: tail(stderr) });
    }
    let missing: Vec<&str> = output
        .stdout
        .lines()
        .chain(stderr.lines())
        .filter_map(|line| line.trim().strip_prefix("No match for argument: "))
        .collect();
    if !missing.is_empty() || stderr.contains("Unable to find a match") {
        let packages = if missing.is_empty() { packages.join(", ") } else { missing.join(", ") };
        return Err(DnfError::NoPackage { what, packages });
    }
    Err(DnfError::Failed { what, code, stderr: tail(stderr) })
}

/// `Error: Failed to download metadata for repo 'kubernetes': …`, `Errors during downloading metadata for repository 'x':`
fn unusable_repository(stderr: &str) -> Option<String> {
    let markers = ["metadata for repo '", "metadata for repository '", "Cannot find a valid baseurl for repo: "];
    markers.iter().find_map(|marker| {
        let rest = stderr.split_once(marker)?.1;
        let end = rest.find(['\'', '\n']).unwrap_or(rest.len());
        Some(rest[..end].trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stderr: &str, stdout: &str) -> DnfError {
        let output = Output { code: Some(1), stdout: stdout.to_owned(), stderr: stderr.to_owned() };
        check("install", &output, &["kubelet-1.36*".to_owned()]).unwrap_err()
    }

    #[test]
    fn a_dead_repository_is_named() {
        // dnf 4.14, CentOS Stream 9
        let error = failed(
            "Errors during downloading metadata for repository 'kubernetes':\n  - Curl error (6): Couldn't resolve host name \
             for https://pkgs.k8s.io/core:/stable:/v1.36/rpm/repodata/repomd.xml\nError: Failed to download metadata for repo \
             'kubernetes': Cannot download repomd.xml: All mirrors were tried\n",
            "",
        );
        assert!(matches!(&error, DnfError::Repository { repo, .. } if repo == "kubernetes"), "{error}");
        assert!(error.to_string().contains("resolve host name"), "{error}");
    }

    #[test]
    fn a_package_that_nobody_offers_is_named() {
        let error = failed("Error: Unable to find a match: nosuch\n", "No match for argument: nosuch\n");
        assert_eq!(error.to_string(), "dnf install: no repository offers nosuch");
    }

    #[test]
    fn the_transaction_number_is_found_in_the_history() {
        let text = "Transaction ID : 17\nBegin time     : Sat Nov 21 12:00:00 2026\nBegin rpmdb    : abc\n";
        assert_eq!(parse_transaction(text), Some(17));
        assert_eq!(parse_transaction("Transaction ID : 4..5\n"), Some(5));
        assert_eq!(parse_transaction("No transactions\n"), None);
    }

    #[test]
    fn packages_that_are_not_installed_are_left_out() {
        let found = parse_installed("kubelet\t1.36.2\t150500.1.1\tx86_64\npackage conntrack is not installed\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found["kubelet"].evr(), "1.36.2-150500.1.1");
    }
}
