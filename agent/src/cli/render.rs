//! Plans and reports as people read them, and plans as scripts do.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use super::output::{Tone, tone};
use crate::plan::{Action, Change, Diff, Outcome, Reason, SavedFile, Undo};
use crate::reconcile::{Finding, Plan, Planned, Report, ResourceState};

/// A plan without what is secret.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PublicPlan {
    /// Version of the format.
    pub schema: u32,
    /// Equal for plans that do the same.
    pub hash: String,
    /// How many resources would change.
    pub changes: usize,
    /// In the order of execution.
    pub resources: Vec<Planned>,
}

/// The plan for scripts.
pub fn public(plan: &Plan) -> PublicPlan {
    let resources = plan.resources.iter().cloned().map(redacted).collect();
    PublicPlan { schema: 1, hash: plan.hash(), changes: plan.changes().count(), resources }
}

fn redacted(mut planned: Planned) -> Planned {
    let Finding::Observed(Outcome::Change(change)) = &mut planned.finding else { return planned };
    for action in &mut change.actions {
        if let Action::WriteFile { content, secret: true, .. }
        // what was there before us may have been secret: nobody has said so
        | Action::TakeBack {
            undo: Undo::RestoreFile { previous: Some(SavedFile::Regular { content, .. }), .. },
        } = action
        {
            "***".clone_into(content);
        }
    }
    for diff in &mut change.diffs {
        if let Diff::File { old, new, secret: true, .. } = diff {
            for text in [old, new].into_iter().flatten() {
                "***".clone_into(text);
            }
        }
    }
    planned
}

/// The plan for people.
pub fn plan(plan: &Plan, diffs: bool, color: bool) -> String {
    let mut text = String::new();
    let mut counts = [0usize; 4];
    for planned in &plan.resources {
        let id = &planned.id;
        match &planned.finding {
            Finding::Observed(Outcome::Converged { note: None }) => counts[1] += 1,
            Finding::Observed(Outcome::Converged { note: Some(note) }) => {
                counts[1] += 1;
                let _ = writeln!(text, "{}", tone(&format!("= {id}: {note}"), Tone::Faint, color));
            }
            Finding::Observed(Outcome::Change(change)) => {
                counts[0] += 1;
                text.push_str(&one_change(change, diffs, color));
            }
            Finding::Observed(Outcome::Waiting { reason }) => {
                counts[2] += 1;
                let _ = writeln!(text, ". {id}: waits: {reason}");
            }
            Finding::Deferred { reason } => {
                counts[2] += 1;
                let _ = writeln!(text, ". {id}: {reason}");
            }
            Finding::Observed(Outcome::Blocked { reason, fix }) => {
                counts[3] += 1;
                let _ = writeln!(text, "{}", tone(&format!("! {id}: blocked: {reason}"), Tone::Trouble, color));
                if let Some(fix) = fix {
                    let _ = writeln!(text, "    fix: {fix}");
                }
            }
            Finding::Observed(Outcome::Conflict { reason }) => {
                counts[3] += 1;
                let _ = writeln!(text, "{}", tone(&format!("! {id}: conflict: {reason}"), Tone::Trouble, color));
            }
            Finding::Failed { error } => {
                counts[3] += 1;
                let _ = writeln!(text, "{}", tone(&format!("! {id}: {error}"), Tone::Trouble, color));
            }
        }
    }
    let [changes, same, waiting, trouble] = counts;
    if !text.is_empty() {
        text.push('\n');
    }
    let _ = write!(text, "{changes} to change, {same} as wanted, {waiting} waiting or deferred, {trouble} in trouble");
    text
}

fn one_change(change: &Change, diffs: bool, color: bool) -> String {
    let (sign, kind) = match &change.reason {
        Reason::Missing => ("+", Tone::Add),
        Reason::Unwanted => ("-", Tone::Remove),
        _ => ("~", Tone::Change),
    };
    let why = match &change.reason {
        Reason::Missing | Reason::Different | Reason::Unwanted => String::new(),
        Reason::Drifted { last: Some(last) } => format!(" (drifted; {last} was applied)"),
        Reason::Drifted { last: None } => " (drifted)".to_owned(),
        Reason::Stale => " (what runs is older than what is on disk)".to_owned(),
        Reason::Overridden { by } => format!(" (overridden by {by})"),
    };
    let mut text = format!("{}: {}{why}\n", tone(&format!("{sign} {}", change.id), kind, color), change.summary);
    if diffs {
        for diff in &change.diffs {
            text.push_str(&one_diff(diff, color));
        }
    }
    if let Some(why) = &change.reboot {
        let _ = writeln!(text, "    takes a reboot: {why}");
    }
    text
}

fn one_diff(diff: &Diff, color: bool) -> String {
    match diff {
        Diff::Value { what, old, new } => {
            let old = old.as_deref().unwrap_or("(none)");
            let new = new.as_deref().unwrap_or("(none)");
            let (old, new) = (tone(old, Tone::Remove, color), tone(new, Tone::Add, color));
            format!("    {what}: {old} → {new}\n")
        }
        Diff::File { path, secret: true, .. } => format!("    {path}: secret, not shown\n"),
        Diff::File { path, old, new, secret: false } => unified(path, old.as_deref(), new.as_deref(), color),
    }
}

/// As `diff -u` prints it.
fn unified(path: &str, old: Option<&str>, new: Option<&str>, color: bool) -> String {
    let name = |side: Option<&str>| if side.is_some() { path.to_owned() } else { "/dev/null".to_owned() };
    let mut text = format!("    --- {}\n    +++ {}\n", name(old), name(new));
    let diff = TextDiff::from_lines(old.unwrap_or_default(), new.unwrap_or_default());
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        let _ = writeln!(text, "    {}", tone(&hunk.header().to_string(), Tone::Faint, color));
        for change in hunk.iter_changes() {
            let (sign, kind) = match change.tag() {
                ChangeTag::Delete => ("-", Some(Tone::Remove)),
                ChangeTag::Insert => ("+", Some(Tone::Add)),
                ChangeTag::Equal => (" ", None),
            };
            // what a file holds must not drive the terminal
            let line: String = change.value().trim_end_matches('\n').chars().map(printable).collect();
            let line = format!("{sign}{line}");
            let line = kind.map_or(line.clone(), |kind| tone(&line, kind, color));
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn printable(c: char) -> char {
    if c.is_control() && c != '\t' { '\u{fffd}' } else { c }
}

/// A report for people.
pub fn report(report: &Report, color: bool) -> String {
    let mut text = String::new();
    for entry in &report.resources {
        let kind = match entry.state {
            ResourceState::Converged => continue,
            ResourceState::Changed => Tone::Add,
            state if state.is_trouble() => Tone::Trouble,
            ResourceState::Waiting | ResourceState::Deferred => Tone::Faint,
            _ => Tone::Change,
        };
        let state = tone(&format!("{:>12}", entry.state.word()), kind, color);
        let time = milliseconds(entry.duration_us);
        let _ = writeln!(text, "{state}  {}{}{time}", entry.id, colon(&entry.detail));
        if let Some(fix) = &entry.fix {
            let _ = writeln!(text, "{:>14}fix: {fix}", "");
        }
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if let Some(why) = &report.undone_because {
        let _ = writeln!(text, "everything was taken back, because of {why}");
    }
    let _ = write!(text, "{}", report.summary());
    if let Some(id) = &report.transaction {
        let _ = write!(text, ", transaction {id}");
    }
    text.push_str(&milliseconds(report.duration_us));
    text
}

fn colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn milliseconds(us: u64) -> String {
    match us {
        0 => String::new(),
        us if us < 10_000_000 => format!(" ({} ms)", us.div_ceil(1000)),
        us => format!(" ({} s)", us / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{ResourceId, Stage};

    fn planned(finding: Finding) -> Planned {
        Planned { id: ResourceId::new("file", "/etc/x"), stage: Stage::Prepare, needs: Vec::new(), finding }
    }

    fn file_change(secret: bool) -> Planned {
        let (old, new) = ("one\ntwo\n".to_owned(), "one\nthree\u{1b}[2J\n".to_owned());
        planned(Finding::Observed(Outcome::Change(Change {
            id: ResourceId::new("file", "/etc/x"),
            reason: Reason::Drifted { last: None },
            summary: "write /etc/x".to_owned(),
            diffs: vec![Diff::File { path: "/etc/x".into(), old: Some(old), new: Some(new.clone()), secret }],
            actions: vec![Action::WriteFile {
                path: "/etc/x".into(),
                content: new,
                mode: 0o600,
                uid: 0,
                gid: 0,
                secret,
            }],
            notify: Vec::new(),
            reboot: Some("it is read at boot".to_owned()),
        })))
    }

    #[test]
    fn files_are_shown_as_a_unified_diff_and_cannot_drive_the_terminal() {
        let plan = Plan { resources: vec![file_change(false)] };
        assert_eq!(
            super::plan(&plan, true, false),
            "~ file//etc/x: write /etc/x (drifted)\n    --- /etc/x\n    +++ /etc/x\n    @@ -1,2 +1,2 @@\n     one\n    -two\n    \
             +three\u{fffd}[2J\n    takes a reboot: it is read at boot\n\n1 to change, 0 as wanted, 0 waiting or deferred, 0 \
             in trouble"
        );
    }

    #[test]
    fn a_secret_is_in_no_rendering() {
        let plan = Plan { resources: vec![file_change(true)] };
        let shown = super::plan(&plan, true, true) + &serde_json::to_string(&public(&plan)).unwrap();
        assert!(!shown.contains("three") && !shown.contains("two"), "{shown}");
    }

    #[test]
    fn values_are_shown_as_old_and_new_in_colour_only_when_asked() {
        let diff = Diff::Value { what: "vm.x".into(), old: None, new: Some("1".into()) };
        assert_eq!(one_diff(&diff, false), "    vm.x: (none) → 1\n");
        assert_eq!(one_diff(&diff, true), "    vm.x: \u{1b}[31m(none)\u{1b}[0m → \u{1b}[32m1\u{1b}[0m\n");
    }
}
