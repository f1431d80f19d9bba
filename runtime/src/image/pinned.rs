//! Images that stay: a pinned one is left alone by the kubelet's collection.

use super::model::Image;

/// Whether one of the patterns matches one of the image's names, with or without `docker.io/library/` in front.
pub(crate) fn is_pinned(image: &Image, patterns: &[String]) -> bool {
    let names = image.tags.iter().chain(&image.digests);
    names.into_iter().any(|name| patterns.iter().any(|pattern| matches(pattern, name)))
}

fn matches(pattern: &str, name: &str) -> bool {
    let short = name.strip_prefix("docker.io/library/").or_else(|| name.strip_prefix("docker.io/"));
    let bare = |name: &str| name.split('@').next().and_then(|name| Some(name.rsplit_once(':')?.0.to_owned()));
    let fits = |name: &str| glob(pattern.as_bytes(), name.as_bytes());
    // a name without a tag stands for all its tags
    [Some(name), short].into_iter().flatten().any(|name| fits(name) || bare(name).is_some_and(|name| fits(&name)))
}

/// `*` is any number of any characters; all else is itself. Linear in time, whatever the pattern.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut position, mut star) = (0, 0, None);
    while position < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, position));
            at += 1;
        } else if pattern.get(at) == Some(&text[position]) {
            at += 1;
            position += 1;
        } else if let Some((star_at, taken)) = star {
            // let the star take one more
            star = Some((star_at, taken + 1));
            (at, position) = (star_at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let fits = |pattern: &str, name: &str| matches(pattern, name);
        assert!(fits("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"));
        assert!(fits("registry.k8s.io/pause", "registry.k8s.io/pause:3.9"));
        assert!(fits("registry.k8s.io/*", "registry.k8s.io/coredns/coredns:v1"));
        assert!(fits("*pause*", "registry.k8s.io/pause:3.9"));
        assert!(fits("busybox:1", "docker.io/library/busybox:1"));
        assert!(fits("r:5000/a", "r:5000/a:1"));
        assert!(!fits("registry.k8s.io/pause:3", "registry.k8s.io/pause:3.9"));
        assert!(!fits("pause", "registry.k8s.io/pause:3.9"));
        assert!(!fits("r:5000/a", "r:5000/ab:1"));
        assert!(!fits("", "a"));
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!glob("*a".repeat(50).as_bytes(), "a".repeat(49).repeat(40).replace('a', "b").as_bytes()));
        assert!(glob(b"**a**", b"xxaxx"));
        assert!(glob(b"*", b""));
    }
}
