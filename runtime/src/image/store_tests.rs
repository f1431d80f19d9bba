use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Duration::ZERO).unwrap();
        Fixture { dir, store }
    }

    fn reopen(self) -> Fixture {
        let Fixture { dir, store } = self;
        drop(store);
        let store = Store::open(dir.path(), Duration::ZERO).unwrap();
        Fixture { dir, store }
    }

    /// An image with one layer.
    fn add(&self, seed: &str, layer: &str, names: &[&str]) -> Arc<Image> {
        let chain = Digest::of(layer.as_bytes());
        let _pin = self.store.snapshots.pin(&[chain]);
        if !self.store.snapshots.contains(chain) {
            self.store.snapshots.add_empty(chain);
        }
        let mut record = ImageRecord::new(Digest::of(seed.as_bytes()));
        record.chain_ids = vec![chain];
        record.size = 7;
        let names: Vec<String> = names.iter().map(|name| Reference::parse(name).unwrap().stored_name()).collect();
        record.blobs = vec![record.id];
        let staged = self.store.content.stage(record.id, seed.as_bytes()).unwrap();
        self.store.add(record, staged.into_iter().collect(), &names).unwrap()
    }

    fn remove(&self, image: &str) {
        for path in self.store.remove(image).unwrap() {
            disk::remove_all(&path);
        }
    }
}

#[test]
fn an_image_is_found_by_tag_digest_id_and_prefix() {
    let digest = format!("app@{}", Digest::of(b"manifest"));
    let fixture = Fixture::new();
    let image = fixture.add("one", "layer", &["app:v1", &digest]);
    let hex = image.id.strip_prefix("sha256:").unwrap().to_owned();
    let fixture = fixture.reopen();
    let with_tag = format!("app:other@{}", Digest::of(b"manifest"));
    for name in ["app:v1", "docker.io/library/app:v1", &digest, &with_tag, &image.id, &hex, &hex[..12], &image.id[..20]]
    {
        assert_eq!(fixture.store.find(name).as_deref(), Some(&*image), "{name}");
    }
    for name in ["app", "app:v2", "other:v1", "", "sha256:", &hex[..2], "x.y/app:v1"] {
        assert_eq!(fixture.store.find(name), None, "{name}");
    }
}

#[test]
fn an_ambiguous_prefix_finds_nothing() {
    let fixture = Fixture::new();
    let mut by_start: HashMap<String, String> = HashMap::new();
    for n in 0.. {
        let id = fixture.add(&n.to_string(), "layer", &[]).id.clone();
        let start = id["sha256:".len()..][..3].to_owned();
        if by_start.insert(start.clone(), id.clone()).is_some() {
            assert_eq!(fixture.store.find(&start), None);
            assert!(fixture.store.find(&id["sha256:".len()..]).is_some());
            break;
        }
    }
}

#[test]
fn a_tag_that_moved_belongs_to_the_new_image_alone() {
    let fixture = Fixture::new();
    let old = fixture.add("old", "layer", &["app:v1", "app:keep"]);
    let new = fixture.add("new", "layer", &["app:v1"]);
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.find("app:v1").unwrap().id, new.id);
    assert_eq!(fixture.store.find(&old.id).unwrap().tags, vec!["docker.io/library/app:keep"]);
    assert_eq!(fixture.store.list().len(), 2);
}

#[test]
fn after_a_crash_between_two_records_the_newer_owner_of_a_tag_wins() {
    let fixture = Fixture::new();
    let old = fixture.add("old", "layer", &["app:v1"]);
    let old_record = fixture.store.record_path(old.id.parse().unwrap());
    let before = std::fs::read(&old_record).unwrap();
    let new = fixture.add("new", "layer", &["app:v1"]);
    std::fs::write(&old_record, before).unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.find("app:v1").unwrap().id, new.id);
    assert_eq!(fixture.store.find(&old.id).unwrap().tags, Vec::<String>::new());
}

#[test]
fn removing_an_image_takes_all_its_tags_and_only_its_own_layers() {
    let fixture = Fixture::new();
    let one = fixture.add("one", "shared", &["app:v1", "other.example/app:v1"]);
    let two = fixture.add("two", "shared", &["app:v2"]);
    let three = fixture.add("three", "own", &["app:v3"]);
    fixture.remove("app:v1");
    fixture.remove(&one.id);
    assert_eq!(fixture.store.find("other.example/app:v1"), None);
    assert!(fixture.store.snapshots.contains(two.chain_ids[0]));
    fixture.remove(&three.id);
    assert!(!fixture.store.snapshots.path(three.chain_ids[0]).exists());
    assert_eq!(fixture.store.content.list().unwrap(), vec![Digest::of(b"two")]);
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.list().len(), 1);
}

#[test]
fn an_image_in_use_is_refused_with_its_user_until_that_is_released() {
    let fixture = Fixture::new();
    let image = fixture.add("one", "layer", &["app:v1"]);
    let rootfs = fixture.store.prepare(&image.id, "c1").unwrap();
    assert_eq!(fixture.store.prepare(&image.id, "c1").unwrap(), rootfs);
    std::fs::write(rootfs.upper.join("file"), b"x").unwrap();
    let fixture = fixture.reopen();
    match fixture.store.remove("app:v1") {
        Err(ImageError::InUse { image: refused, by }) => {
            assert_eq!((refused, by), (image.id.clone(), vec!["c1".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.store.prepare(&image.id, "c1").unwrap(), rootfs);
    disk::remove_all(&fixture.store.release("c1").unwrap().unwrap());
    assert_eq!(fixture.store.release("c1").unwrap(), None);
    fixture.remove("app:v1");
    assert_eq!(fixture.store.list().len(), 0);
    assert!(!rootfs.container_dir.exists());
}

#[test]
fn layers_of_a_running_container_stay_even_when_the_record_of_its_image_is_lost() {
    let fixture = Fixture::new();
    let image = fixture.add("one", "layer", &["app:v1"]);
    fixture.store.prepare(&image.id, "c1").unwrap();
    std::fs::write(fixture.store.record_path(image.id.parse().unwrap()), b"{").unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.find("app:v1"), None);
    assert_eq!(fixture.store.sweep_locked(Duration::ZERO).unwrap(), Vec::<PathBuf>::new());
    assert!(fixture.store.snapshots.contains(image.chain_ids[0]));
}

#[test]
fn container_ids_that_are_no_file_names_are_refused() {
    let fixture = Fixture::new();
    let image = fixture.add("one", "layer", &["app:v1"]);
    for id in ["", "..", ".hidden", "a/b", "../../etc", "a\0b", &"x".repeat(200)] {
        assert!(matches!(fixture.store.prepare(&image.id, id), Err(ImageError::ContainerId { .. })), "{id:?}");
        assert!(matches!(fixture.store.release(id), Err(ImageError::ContainerId { .. })), "{id:?}");
    }
}

#[test]
fn an_image_without_layers_still_gives_overlayfs_a_lower_directory() {
    let fixture = Fixture::new();
    let image =
        fixture.store.add(ImageRecord::new(Digest::of(b"scratch")), Vec::new(), &["x.y/a:b".to_owned()]).unwrap();
    let rootfs = fixture.store.prepare(&image.id, "c1").unwrap();
    assert_eq!(rootfs.lower.len(), 1);
    assert!(rootfs.lower[0].is_dir());
}

#[test]
fn only_what_is_unfinished_is_dropped_at_start() {
    let fixture = Fixture::new();
    let image = fixture.add("one", "layer", &["app:v1"]);
    fixture.store.prepare(&image.id, "c1").unwrap();
    std::fs::create_dir_all(fixture.dir.path().join("tmp/half/fs/etc")).unwrap();
    std::fs::create_dir_all(fixture.dir.path().join("rootfs/half/upper")).unwrap();
    let fixture = fixture.reopen();
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(fixture.store.containers(), vec!["c1".to_owned()]);
    assert!(!fixture.dir.path().join("rootfs/half").exists());
    assert_eq!(fixture.store.find("app:v1").as_deref(), Some(&*image));
}

#[test]
fn a_store_that_another_has_is_waited_for_as_long_as_told() {
    let Fixture { dir, store } = Fixture::new();
    for wait in [Duration::ZERO, Duration::from_millis(20)] {
        let error = Store::open(dir.path(), wait).unwrap_err();
        assert!(matches!(&error, ImageError::Locked { path } if path.ends_with("lock")), "{error}");
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Store::open(dir.path(), Duration::from_secs(60)).map(drop));
        drop(store);
        // also after those who gave up, whose threads may get it first
        waiting.join().unwrap().unwrap();
    });
    assert!(Store::open(dir.path(), Duration::from_secs(60)).is_ok());
}

#[test]
fn a_record_never_names_a_document_that_is_gone() {
    let fixture = Fixture::new();
    let mut record = ImageRecord::new(Digest::of(b"image"));
    record.blobs = vec![record.id];
    // as if it had been here when the pull looked
    let error = fixture.store.add(record, Vec::new(), &["x.example/app:v1".to_owned()]).unwrap_err();
    assert!(matches!(error, ImageError::NotHere { .. }), "{error}");
    assert_eq!(fixture.store.list(), Vec::<Arc<Image>>::new());
}
