//! Who runs in a container: asked for by id or name, completed from the image's own passwd and group.

use std::path::{Path, PathBuf};

use nodeagent_cri_api::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

use super::SpecError;
use super::layers;
use crate::container::record::User;
use crate::image::{ImageConfig, Rootfs};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// More than any honest file has; what is behind is not looked at.
const MAX_FILE: u64 = 1 << 20;
/// `NGROUPS_MAX` of the kernel.
const MAX_GROUPS: usize = 65_536;

pub(super) fn resolve(
    context: &LinuxContainerSecurityContext,
    image: &ImageConfig,
    rootfs: &Rootfs,
) -> Result<User, SpecError> {
    let mut layers = vec![rootfs.upper.clone()];
    layers.extend(rootfs.lower.iter().cloned());
    let database = Database { passwd: read(&layers, PASSWD)?, group: read(&layers, GROUP)? };
    database.resolve(context, &image.user)
}

fn read(layers: &[PathBuf], file: &'static str) -> Result<String, SpecError> {
    let bytes = layers::read(layers, Path::new(file), MAX_FILE);
    let bytes = bytes.map_err(|source| SpecError::ImageFile { file, source })?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The image's users and groups.
struct Database {
    passwd: String,
    group: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Database {
    fn resolve(&self, context: &LinuxContainerSecurityContext, image_user: &str) -> Result<User, SpecError> {
        let asked_group = context.run_as_group.as_ref().map(|group| id("run_as_group", group.value)).transpose()?;
        let (user, group) = match (&context.run_as_user, context.run_as_username.as_str()) {
            (Some(uid), _) => (id("run_as_user", uid.value)?.to_string(), None),
            (None, name) if !name.is_empty() => (name.to_owned(), None),
            (None, _) if asked_group.is_some() => {
                return Err(SpecError::Invalid("run_as_group needs run_as_user or run_as_username".to_owned()));
            }
            (None, _) => {
                let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
                (if user.is_empty() { "0" } else { user }.to_owned(), Some(group).filter(|group| !group.is_empty()))
            }
        };
        let account = self.account(&user)?;
        let gid = match (asked_group, group) {
            (Some(gid), _) => gid,
            (None, Some(group)) => self.gid(group)?,
            (None, None) => account.gid,
        };
        let mut groups = vec![gid];
        for asked in &context.supplemental_groups {
            push(&mut groups, id("supplemental_groups", *asked)?);
        }
        if context.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge {
            for group in self.groups_of(account.name) {
                push(&mut groups, group);
            }
        }
        if groups.len() > MAX_GROUPS {
            return Err(SpecError::Invalid(format!("{} groups are too many", groups.len())));
        }
        Ok(User { uid: account.uid, gid, groups, home: account.home.to_owned() })
    }

    /// By id or name. An id need not be in the file; a name must.
    fn account<'a>(&'a self, user: &'a str) -> Result<Account<'a>, SpecError> {
        let number = user.parse::<u32>().ok();
        let found = self.accounts().find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == user,
        });
        match (found, number) {
            (Some(account), _) => Ok(account),
            (None, Some(uid)) => Ok(Account { name: "", uid, gid: 0, home: if uid == 0 { "/root" } else { "/" } }),
            (None, None) => Err(SpecError::Unknown { what: "user", name: user.to_owned(), file: PASSWD }),
        }
    }

    fn gid(&self, group: &str) -> Result<u32, SpecError> {
        if let Ok(gid) = group.parse() {
            return Ok(gid);
        }
        let found = self.groups().find(|known| known.name == group);
        let unknown = || SpecError::Unknown { what: "group", name: group.to_owned(), file: GROUP };
        found.map(|group| group.gid).ok_or_else(unknown)
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
            Some(Account { name, uid, gid, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some(Group { name, gid, members: fields.next().unwrap_or_default() })
        })
    }

    fn groups_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = u32> + 'a {
        let is_member = move |group: &Group<'_>| group.members.split(',').any(|member| member.trim() == name);
        self.groups().filter(move |group| !name.is_empty() && is_member(group)).map(|group| group.gid)
    }
}

fn push(groups: &mut Vec<u32>, group: u32) {
    if !groups.contains(&group) {
        groups.push(group);
    }
}

fn id(what: &str, value: i64) -> Result<u32, SpecError> {
    // the last one means "leave as it is" to the kernel
    let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| SpecError::Invalid(format!("{what}: {value} is no id")))
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::Int64Value;

    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/sh\nbroken line\nweb:x:33:33::/var/www:/bin/sh\n\
                     default-user:x:1000:1000::/home/d:/bin/sh\nnohome:x:5:6:::\n"
                .to_owned(),
            group: "root:x:0:\nweb:x:33:\nextra:x:50000:default-user,web\n:x:7:default-user\n".to_owned(),
        }
    }

    fn of(context: &LinuxContainerSecurityContext, image: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let user = database().resolve(context, image).map_err(|error| error.to_string())?;
        Ok((user.uid, user.gid, user.groups, user.home))
    }

    fn ids(user: Option<i64>, group: Option<i64>) -> LinuxContainerSecurityContext {
        let value = |value| Int64Value { value };
        LinuxContainerSecurityContext {
            run_as_user: user.map(value),
            run_as_group: group.map(value),
            ..Default::default()
        }
    }

    #[test]
    fn the_image_decides_when_nothing_is_asked() {
        let none = ids(None, None);
        assert_eq!(of(&none, ""), Ok((0, 0, vec![0], "/root".into())));
        assert_eq!(of(&none, "web"), Ok((33, 33, vec![33, 50_000], "/var/www".into())));
        assert_eq!(of(&none, "33"), Ok((33, 33, vec![33, 50_000], "/var/www".into())));
        assert_eq!(of(&none, "web:root"), Ok((33, 0, vec![0, 50_000], "/var/www".into())));
        assert_eq!(of(&none, "4711:4712"), Ok((4711, 4712, vec![4712], "/".into())));
        assert_eq!(of(&none, "nohome"), Ok((5, 6, vec![6], "/".into())));
    }

    #[test]
    fn what_is_asked_wins() {
        assert_eq!(of(&ids(Some(1000), None), "web"), Ok((1000, 1000, vec![1000, 50_000], "/home/d".into())));
        assert_eq!(of(&ids(Some(4711), Some(9)), "web"), Ok((4711, 9, vec![9], "/".into())));
        let named = LinuxContainerSecurityContext { run_as_username: "web".into(), ..Default::default() };
        assert_eq!(of(&named, ""), Ok((33, 33, vec![33, 50_000], "/var/www".into())));
    }

    #[test]
    fn groups_come_in_order_own_asked_image() {
        let mut context = ids(Some(1000), None);
        context.supplemental_groups = vec![1234, 1000];
        assert_eq!(of(&context, "").unwrap().2, [1000, 1234, 50_000]);
        context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        assert_eq!(of(&context, "").unwrap().2, [1000, 1234]);
    }

    #[test]
    fn a_group_without_a_user_and_unknown_names_are_refused() {
        assert!(of(&ids(None, Some(9)), "web").unwrap_err().contains("run_as_group needs"));
        assert_eq!(of(&ids(None, None), "ghost").unwrap_err(), "user `ghost` is not in the image's /etc/passwd");
        assert_eq!(of(&ids(None, None), "web:ghosts").unwrap_err(), "group `ghosts` is not in the image's /etc/group");
        assert!(of(&ids(Some(-1), None), "").unwrap_err().contains("-1 is no id"));
        assert!(of(&ids(Some(i64::from(u32::MAX)), None), "").is_err());
    }
}
