//! A marked block in a file that is somebody else's: `[[file]]` with `block`.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::owned_file::{FileNow, Found, OwnedFile};
use super::{Past, PlanContext, Resource, ResourceError};
use crate::host::Host;
use crate::plan::{Change, Outcome, ResourceId};

/// The lines around a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks<'a> {
    /// What begins a comment in this file.
    pub sign: &'a str,
    /// What the block is.
    pub whose: &'a str,
}

impl Marks<'_> {
    fn begin(&self) -> String {
        format!("{} begin of {}; changes made here are undone\n", self.sign, self.whose)
    }

    fn end(&self) -> String {
        format!("{} end of {}\n", self.sign, self.whose)
    }

    /// The text with these lines as the block: where the block was, else at the end.
    pub fn put(&self, text: &str, lines: &str) -> String {
        let (begin, end) = (self.begin(), self.end());
        // a mark is a whole line; without its end nobody knows what was ours: it stays, as somebody else's
        let (before, after) = match line_at(text, &begin) {
            Some(at) => {
                let rest = &text[at + begin.len()..];
                (&text[..at], line_at(rest, &end).map_or(rest, |at| &rest[at + end.len()..]))
            }
            None => (text, ""),
        };
        let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        format!("{before}{gap}{begin}{lines}{end}{after}")
    }
}

/// Where this line begins.
fn line_at(text: &str, line: &str) -> Option<usize> {
    text.match_indices(line).map(|(at, _)| at).find(|at| *at == 0 || text.as_bytes()[at - 1] == b'\n')
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Absolute path on the host.
    pub path: String,
    /// The comment sign.
    pub sign: String,
    /// Whole lines.
    pub lines: String,
    /// Never print the text.
    pub secret: bool,
}

/// What is there.
pub type Observed = FileNow;

const WHOSE: &str = "nodeagent's block";

/// Decides. Mode and owner are the file's own.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    let path = &desired.path;
    let blocked =
        |what: &str| Outcome::Blocked { reason: format!("{path} is {what}"), fix: Some(format!("move {path} away")) };
    let (mode, uid, gid) = match &observed.found {
        Some(Found::Other(what)) => return blocked(what),
        Some(Found::File { text: None, .. }) => return blocked("no text"),
        Some(Found::File { mode, uid, gid, .. }) => (*mode, *uid, *gid),
        None => (if desired.secret { 0o600 } else { 0o644 }, 0, 0),
    };
    let marks = Marks { sign: &desired.sign, whose: WHOSE };
    let content = marks.put(observed.text().unwrap_or_default(), &desired.lines);
    let file = OwnedFile { path: path.clone(), content, mode, uid, gid, secret: desired.secret };
    let Some(step) = file.step(observed) else { return Outcome::converged() };
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(step.missing),
        summary: format!("write our block of {path}"),
        diffs: step.diffs,
        actions: step.actions,
        notify: Vec::new(),
        reboot: None,
    })
}

/// One block.
pub struct Block {
    id: ResourceId,
    desired: Desired,
}

impl Block {
    /// In the file at this path.
    pub fn new(desired: Desired) -> Block {
        Block { id: ResourceId::new("file", &desired.path), desired }
    }
}

#[async_trait]
impl Resource for Block {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = FileNow::observe(&host.root, &self.desired.path)?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let path = &self.desired.path;
        format!(
            "The lines of {path} between the marks `{begin}` and `{end}`, from a [[file]] table of the config; the rest of the \
             file is not ours. By hand: cat {path}",
            begin = Marks { sign: &self.desired.sign, whose: WHOSE }.begin().trim_end(),
            end = Marks { sign: &self.desired.sign, whose: WHOSE }.end().trim_end(),
        )
    }

    fn applied(&self) -> Value {
        json!({"digest": super::digest(&self.desired.lines), "block": self.desired.sign})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(text: Option<&str>) -> Outcome {
        let found = text.map(|text| Found::File { text: Some(text.to_owned()), mode: 0o640, uid: 0, gid: 5 });
        let observed = FileNow { missing_directories: vec![], found };
        let desired =
            Desired { path: "/etc/hosts".into(), sign: "#".into(), lines: "10.0.0.1 api\n".into(), secret: false };
        plan(&ResourceId::new("file", "/etc/hosts"), &desired, &observed, &Past::Unknown)
    }

    fn written(outcome: &Outcome) -> (String, u32) {
        match &outcome.change().unwrap_or_else(|| panic!("{outcome:?}")).actions[..] {
            [crate::plan::Action::WriteFile { content, mode, .. }] => (content.clone(), *mode),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_block_is_put_at_the_end_once_and_stays_where_it_is() {
        let (first, mode) = written(&decide(Some("127.0.0.1 localhost")));
        assert!(first.starts_with("127.0.0.1 localhost\n# begin of nodeagent's block") && first.ends_with("block\n"));
        assert_eq!(mode, 0o640, "the file's own");
        assert_eq!(decide(Some(&first)), Outcome::converged());
        let drifted = format!("{}::1 localhost\n", first.replace("10.0.0.1", "10.0.0.2"));
        assert_eq!(written(&decide(Some(&drifted))).0, format!("{first}::1 localhost\n"));
        assert_eq!(written(&decide(None)).1, 0o644);
    }

    proptest::proptest! {
        /// Whatever stands in the file, a mark or half of one included: nothing of it is lost, and the second time changes
        /// nothing.
        #[test]
        fn what_is_put_in_twice_is_there_once(lines in proptest::collection::vec(
            proptest::sample::select(vec!["a", "", "# begin of b; changes made here are undone", "# end of b", "x# end of b"]), 0..6,
        )) {
            let marks = Marks { sign: "#", whose: "b" };
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let once = marks.put(&text, "ours\n");
            let block = marks.begin() + "ours\n" + &marks.end();
            proptest::prop_assert!(once.contains(&block));
            proptest::prop_assert_eq!(marks.put(&once, "ours\n"), once);
        }
    }
}
