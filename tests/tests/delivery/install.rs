//! Files that people install nodes with: the kickstart file and cloud-init's user-data.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nodeagent_tests::outside::{repository, run};
use tempfile::NamedTempFile;

use crate::trees::{name, unit_files};
use crate::trial;

const KICKSTART: &str = "kickstart/el9.ks";
const USER_DATA: &str = "kickstart/cloud-init/user-data";
/// Versions of the syntax that the kickstart file has to be valid in.
const SYNTAXES: [&str; 3] = ["RHEL8", "RHEL9", "RHEL10"];

pub fn trials() -> Vec<Trial> {
    vec![
        trial("kickstart: valid for EL 8, 9 and 10, as pykickstart judges", kickstart_is_valid),
        trial("kickstart: the validator refuses a command that does not exist", validator_refuses),
        trial("kickstart: %post stops the installation when it fails, and bash can read it", post_is_bash),
        trial("cloud-init: user-data is valid by its schema, a wrong type in it is not", user_data_is_valid),
        trial("cloud-init: user-data ends by starting units that the package brings", user_data_starts_units),
    ]
}

/// Where the tier runner puts pykickstart, or one that is installed.
fn ksvalidator() -> PathBuf {
    let ours = repository().join("target/tools/pykickstart/bin/ksvalidator");
    if ours.exists() { ours } else { "ksvalidator".into() }
}

fn validate(syntax: &str, file: &Path) -> Result<(bool, String)> {
    let program = ksvalidator();
    let verdict = run(&program.to_string_lossy(), ["-v".as_ref(), syntax.as_ref(), file.as_os_str()])?;
    // it names the file it reads; anything else is a complaint, also with exit status 0
    let complaints: String =
        verdict.text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with("Checking kickstart file")).collect();
    Ok((verdict.success && complaints.is_empty(), verdict.text))
}

fn kickstart_is_valid() -> Result<()> {
    for syntax in SYNTAXES {
        let (valid, text) = validate(syntax, &repository().join(KICKSTART))?;
        ensure!(valid, "{syntax}: {text}");
    }
    Ok(())
}

fn validator_refuses() -> Result<()> {
    let file = NamedTempFile::new()?;
    fs::write(
        file.path(),
        fs::read_to_string(repository().join(KICKSTART))?.replace("rootpw --lock", "rootpv --lock"),
    )?;
    let (valid, text) = validate("RHEL9", file.path())?;
    ensure!(!valid && text.contains("rootpv"), "accepted: {text}");
    Ok(())
}

/// The options of `%post`, and its script.
pub fn post() -> Result<(String, String)> {
    let text = fs::read_to_string(repository().join(KICKSTART))?;
    let (_, rest) = text.split_once("\n%post").context("no %post section")?;
    let (options, rest) = rest.split_once('\n').context("%post ends with its first line")?;
    let (script, _) = rest.split_once("\n%end").context("%post has no %end")?;
    Ok((options.to_owned(), format!("{script}\n")))
}

fn post_is_bash() -> Result<()> {
    let (options, script) = post()?;
    ensure!(options.split_whitespace().any(|o| o == "--erroronfail"), "%post{options} goes on after an error");
    ensure!(script.lines().any(|l| l == "set -euo pipefail"), "%post does not stop at its first error");
    let file = NamedTempFile::new()?;
    fs::write(file.path(), script)?;
    run("bash", ["-n".as_ref(), file.path().as_os_str()])?.silent("bash -n on %post")
}

fn schema(file: &Path) -> Result<(bool, String)> {
    let verdict = run("cloud-init", ["schema".as_ref(), "-c".as_ref(), file.as_os_str()])?;
    Ok((verdict.success && verdict.text.contains("Valid"), verdict.text))
}

fn user_data_is_valid() -> Result<()> {
    let good = repository().join(USER_DATA);
    let (valid, text) = schema(&good)?;
    ensure!(valid, "{text}");
    let bad = NamedTempFile::new()?;
    let text = fs::read_to_string(good)?;
    ensure!(text.contains("enabled: true"), "{USER_DATA} has no `enabled: true` to spoil");
    fs::write(bad.path(), text.replace("enabled: true", "enabled: [no]"))?;
    let (valid, text) = schema(bad.path())?;
    ensure!(!valid && text.contains("enabled"), "accepted: {text}");
    Ok(())
}

fn user_data_starts_units() -> Result<()> {
    let text = fs::read_to_string(repository().join(USER_DATA))?;
    let (_, commands) = text.split_once("\nruncmd:\n").context("no runcmd")?;
    let last = commands.lines().last().context("runcmd is empty")?;
    let words: Vec<&str> = last.trim().trim_start_matches("- [").trim_end_matches(']').split(", ").collect();
    ensure!(words.starts_with(&["systemctl", "start", "--no-block"]), "the last command is {words:?}");
    let units: Vec<String> = unit_files()?.iter().map(|f| name(f)).collect();
    for unit in &words[3..] {
        ensure!(units.iter().any(|u| u == unit), "{unit} is not in units/system");
    }
    for unit in ["nodeagent-prepare.service", "nodeagent-activate.service"] {
        ensure!(words.contains(&unit), "{unit} is not started");
    }
    Ok(())
}
