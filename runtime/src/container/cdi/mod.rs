//! Devices by name, as their vendors describe them (Container Device Interface): a name stands for device nodes, mounts,
//! variables and groups. Descriptions are files that come and go with drivers, so they are read when they are asked for.

mod file;
mod hook;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nodeagent_cri_api::ContainerConfig;

use file::{Description, Format};
pub use file::{Device, Edits, Mount};
pub use hook::{Hook, Stage, document};

/// Annotations of containers that name devices begin so.
const ANNOTATION: &str = "cdi.k8s.io/";

/// A description has some kilobytes.
const MAX_SIZE: u64 = 4 << 20;
/// More than any host has drivers.
const MAX_FILES: usize = 512;

/// Why a device cannot be given by its name.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A directory of descriptions cannot be listed.
    #[error("CDI: cannot list {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody describes it.
    #[error("CDI device `{name}` is described nowhere in {directories}{hint}")]
    Unknown {
        /// As it was asked for.
        name: String,
        /// Where was looked.
        directories: String,
        /// What comes near, or what is wrong with the files there.
        hint: String,
    },
    /// Two files of one directory describe it.
    #[error("CDI device `{name}` is described by both {} and {}", first.display(), second.display())]
    Twice {
        /// As it was asked for.
        name: String,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// What it asks for cannot be given.
    #[error("CDI device `{name}` of {}: {what} are not offered by this runtime", path.display())]
    Unsupported {
        /// As it was asked for.
        name: String,
        /// Its description.
        path: PathBuf,
        /// What it asks for.
        what: String,
    },
}

/// The names that a container asks for, each once.
pub fn names(config: &ContainerConfig) -> Vec<String> {
    let mut annotations: Vec<_> = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotations.sort();
    let annotated = annotations.into_iter().flat_map(|(_, value)| value.split(',').map(|name| name.trim().to_owned()));
    let mut names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
    for name in annotated.filter(|name| !name.is_empty()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What those devices add to a container. Of the directories, a later one counts for more.
pub fn resolve(directories: &[PathBuf], names: &[String]) -> Result<Edits, CdiError> {
    let mut edits = Edits::default();
    if names.is_empty() {
        return Ok(edits);
    }
    let known = read(directories)?;
    // what a description says of all its devices is said once
    let mut general: Vec<&Path> = Vec::new();
    for name in names {
        let (path, description) = known.find(name, directories)?;
        let (_, device) = name.split_once('=').unwrap_or(("", name));
        let own = description.devices.iter().find(|one| one.name == device);
        let shared = (!general.contains(&path)).then_some(&description.container_edits);
        general.push(path);
        for part in shared.into_iter().chain(own.map(|own| &own.container_edits)) {
            let refused = |what| CdiError::Unsupported { name: name.clone(), path: path.to_owned(), what };
            edits.add(part).map_err(refused)?;
        }
    }
    Ok(edits)
}

/// Descriptions by the directory's place in the list.
struct Known {
    files: Vec<(usize, PathBuf, Description)>,
    /// Files that are none.
    broken: Vec<String>,
}

fn read(directories: &[PathBuf]) -> Result<Known, CdiError> {
    let mut known = Known { files: Vec::new(), broken: Vec::new() };
    for (place, directory) in directories.iter().enumerate() {
        let failed = |source| CdiError::Directory { path: directory.clone(), source };
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.into_iter().take(MAX_FILES) {
            let Some(format) = Format::of(&path) else { continue };
            // one driver's broken file must not take the others' devices away
            match load(&path, format) {
                Ok(description) => known.files.push((place, path, description)),
                Err(why) => known.broken.push(format!("{}: {why}", path.display())),
            }
        }
    }
    Ok(known)
}

fn load(path: &Path, format: Format) -> Result<Description, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_SIZE {
        return Err(format!("{size} bytes are too many"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    format.parse(&text)
}

impl Known {
    fn find(&self, name: &str, directories: &[PathBuf]) -> Result<(&Path, &Description), CdiError> {
        let mut found: HashMap<usize, (&Path, &Description)> = HashMap::new();
        for (place, path, description) in &self.files {
            let has = |kind: &str, device: &str| {
                kind == description.kind && description.devices.iter().any(|one| one.name == device)
            };
            if !name.split_once('=').is_some_and(|(kind, device)| has(kind, device)) {
                continue;
            }
            if let Some((first, _)) = found.insert(*place, (path, description)) {
                let (first, second) = (first.to_owned(), path.clone());
                return Err(CdiError::Twice { name: name.to_owned(), first, second });
            }
        }
        let last = found.keys().max().copied();
        last.and_then(|last| found.remove(&last)).ok_or_else(|| self.unknown(name, directories))
    }

    fn unknown(&self, name: &str, directories: &[PathBuf]) -> CdiError {
        let all = self.files.iter().flat_map(|(_, _, description)| {
            description.devices.iter().map(|device| format!("{}={}", description.kind, device.name))
        });
        let near = all.map(|one| (strsim::jaro_winkler(&one, name), one)).filter(|(likeness, _)| *likeness > 0.8);
        let near = near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, one)| format!(", did you mean `{one}`?"));
        let broken = (!self.broken.is_empty()).then(|| format!("; unusable: {}", self.broken.join("; ")));
        let directories: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        let hint = near.or(broken).unwrap_or_default();
        CdiError::Unknown { name: name.to_owned(), directories: directories.join(", "), hint }
    }
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::CdiDevice;

    use super::*;

    const GPU: &str = "cdiVersion: 0.6.0\nkind: vendor.com/gpu\ncontainerEdits:\n  env: [ALL=1]\ndevices:\n\
        - name: '0'\n  containerEdits:\n    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw}]\n    additionalGids: [44, 0]\n\
        - name: '1'\n  containerEdits:\n    env: [ONE=1]\n    mounts: [{hostPath: /etc, containerPath: /driver, options: [ro, nosuid]}]\n";

    fn directories() -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        let all = ["static", "dynamic"].map(|name| root.path().join(name));
        fs::create_dir(&all[0]).unwrap();
        (root, all.to_vec())
    }

    fn wanted(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_name_stands_for_everything_that_its_description_says() {
        let (_root, dirs) = directories();
        fs::write(dirs[0].join("gpu.yaml"), GPU).unwrap();
        fs::write(dirs[0].join("broken.json"), "{").unwrap();
        fs::write(dirs[0].join("README"), "nothing").unwrap();
        let edits = resolve(&dirs, &wanted(&["vendor.com/gpu=0", "vendor.com/gpu=1"])).unwrap();
        assert_eq!(edits.env, ["ALL=1", "ONE=1"]);
        assert_eq!((edits.devices[0].path.as_str(), edits.devices[0].host()), ("/dev/gpu0", "/dev/null"));
        assert_eq!(edits.mounts[0].container_path, "/driver");
        assert_eq!(edits.groups, [44]);
        assert_eq!(resolve(&dirs, &[]).unwrap(), Edits::default());
    }

    #[test]
    fn a_later_directory_wins_and_two_files_of_one_are_refused() {
        let (_root, dirs) = directories();
        let json = |value: &str| {
            format!(
                r#"{{"cdiVersion":"0.5.0","kind":"v.com/c","devices":[{{"name":"a","containerEdits":{{"env":["X={value}"]}}}}]}}"#
            )
        };
        fs::write(dirs[0].join("a.json"), json("static")).unwrap();
        assert_eq!(resolve(&dirs, &wanted(&["v.com/c=a"])).unwrap().env, ["X=static"]);
        fs::create_dir(&dirs[1]).unwrap();
        fs::write(dirs[1].join("a.json"), json("dynamic")).unwrap();
        assert_eq!(resolve(&dirs, &wanted(&["v.com/c=a"])).unwrap().env, ["X=dynamic"]);
        fs::write(dirs[1].join("b.json"), json("again")).unwrap();
        assert!(matches!(resolve(&dirs, &wanted(&["v.com/c=a"])), Err(CdiError::Twice { .. })));
    }

    #[test]
    fn what_is_not_described_is_named_with_what_comes_near() {
        let (_root, dirs) = directories();
        fs::write(dirs[0].join("gpu.yaml"), GPU).unwrap();
        let error = |name: &str| resolve(&dirs, &wanted(&[name])).unwrap_err().to_string();
        assert!(
            error("vendor.com/gpu=2").ends_with("did you mean `vendor.com/gpu=1`?"),
            "{}",
            error("vendor.com/gpu=2")
        );
        fs::write(dirs[0].join("bad.yaml"), "kind: [").unwrap();
        assert!(error("x").contains("bad.yaml"), "{}", error("x"));
        let other = GPU.replace("env: [ONE=1]", "intelRdt: {closID: one}");
        fs::write(dirs[0].join("gpu.yaml"), other).unwrap();
        assert!(error("vendor.com/gpu=1").contains("Intel RDT are not offered"), "{}", error("vendor.com/gpu=1"));
    }

    #[test]
    fn programs_are_taken_as_they_are_described() {
        let (_root, dirs) = directories();
        let text =
            "env: [ONE=1]\n    hooks: [{hookName: createContainer, path: /bin/hook, args: [hook, links], timeout: 5}]";
        fs::write(dirs[0].join("gpu.yaml"), GPU.replace("env: [ONE=1]", text)).unwrap();
        let edits = resolve(&dirs, &wanted(&["vendor.com/gpu=1"])).unwrap();
        let hook = Hook {
            stage: Stage::CreateContainer,
            path: "/bin/hook".into(),
            args: vec!["hook".into(), "links".into()],
            env: vec![],
            timeout: Some(5),
        };
        assert_eq!((edits.hooks, edits.env), (vec![hook], vec!["ALL=1".to_owned(), "ONE=1".to_owned()]));
        let error = |text: &str| {
            fs::write(dirs[0].join("gpu.yaml"), GPU.replace("env: [ONE=1]", text)).unwrap();
            resolve(&dirs, &wanted(&["vendor.com/gpu=1"])).unwrap_err().to_string()
        };
        let unknown = error("hooks: [{hookName: preStart, path: /bin/hook}]");
        assert!(unknown.contains("`preStart` (there are prestart, createRuntime"), "{unknown}");
        let relative = error("hooks: [{hookName: poststop, path: hook}]");
        assert!(relative.contains("without an absolute path, as `hook`"), "{relative}");
    }

    #[test]
    fn names_come_from_the_field_and_from_annotations() {
        let config = ContainerConfig {
            cdi_devices: vec![CdiDevice { name: "v/c=1".into() }],
            annotations: [("cdi.k8s.io/plugin".to_owned(), "v/c=1, v/c=2".to_owned()), ("x".into(), "v/c=3".into())]
                .into(),
            ..ContainerConfig::default()
        };
        assert_eq!(names(&config), ["v/c=1", "v/c=2"]);
    }
}
