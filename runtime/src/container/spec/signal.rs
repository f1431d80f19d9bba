//! The signal of a polite stop.

use nix::sys::signal::Signal;
use nodeagent_cri_api::{ContainerConfig, Signal as CriSignal};

use crate::image::ImageConfig;

/// First and last real-time signal as programs see them: the C library keeps the first two of the kernel's.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// What the configuration says, else the image, else SIGTERM.
pub(super) fn of(config: &ContainerConfig, image: &ImageConfig) -> i32 {
    let from_image = || image.stop_signal.as_deref().and_then(parse);
    from_cri(config.stop_signal()).or_else(from_image).unwrap_or(Signal::SIGTERM as i32)
}

fn from_cri(signal: CriSignal) -> Option<i32> {
    match signal {
        CriSignal::RuntimeDefault => None,
        named => parse(&named.as_str_name().replace("SIGNAL_", "").replace("PLUS", "+").replace("MINUS", "-")),
    }
}

/// `SIGUSR1`, `USR1`, `10`, `SIGRTMIN+3`.
fn parse(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let real_time = match name {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        // names that share a number with another
        "CLD" => return Some(Signal::SIGCHLD as i32),
        "IOT" => return Some(Signal::SIGABRT as i32),
        "POLL" => return Some(Signal::SIGIO as i32),
        _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
            (Some(offset), _) => Some(RTMIN + offset.parse::<i32>().ok()?),
            (_, Some(offset)) => Some(RTMAX - offset.parse::<i32>().ok()?),
            _ => None,
        },
    };
    match real_time {
        Some(number) => (RTMIN..=RTMAX).contains(&number).then_some(number),
        None => format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32),
    }
}

/// The protocol's name of a signal number, for the status.
pub fn to_cri(number: i32) -> CriSignal {
    (1..=65)
        .filter_map(|value| CriSignal::try_from(value).ok())
        .find(|signal| from_cri(*signal) == Some(number))
        .unwrap_or(CriSignal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let table = [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-2", Some(62)),
            ("SIGPOLL", Some(29)),
            ("SIGCLD", Some(17)),
            ("SIGRTMIN+99", None),
            ("0", None),
            ("65", None),
            ("HURRY", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn every_signal_of_the_protocol_has_a_number() {
        for value in 1..=65 {
            let signal = CriSignal::try_from(value).unwrap();
            assert!(from_cri(signal).is_some(), "{signal:?}");
        }
        assert_eq!(from_cri(CriSignal::Sigrtminplus3), Some(37));
        assert_eq!(from_cri(CriSignal::Sigrtmaxminus14), Some(50));
        assert_eq!(to_cri(15), CriSignal::Sigterm);
    }

    #[test]
    fn the_configuration_comes_before_the_image() {
        let image = ImageConfig { stop_signal: Some("SIGQUIT".into()), ..ImageConfig::default() };
        let mut config = ContainerConfig::default();
        assert_eq!(of(&config, &ImageConfig::default()), 15);
        assert_eq!(of(&config, &image), 3);
        config.stop_signal = CriSignal::Sigusr1.into();
        assert_eq!(of(&config, &image), 10);
    }
}
