//! Figures as people read them.

use std::time::Duration;

use hatchery_common::{
    node::Figure,
    time::Timestamp,
    trainer::{GpuReading, bits},
};

/// `1.2 kB`, `13.1 MB`: decimal units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `850 ms`, `12 s`, `3 min 20 s`, `2 h 05 min`, `4 d 3 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// How long ago something was, by this machine's clock.
pub(crate) fn ago(when: Timestamp) -> String {
    let since = Timestamp::now().since(when);
    if since < Duration::from_secs(1) { "just now".to_owned() } else { format!("{} ago", duration(since)) }
}

/// A loss in nats, or a dash.
pub(crate) fn loss(loss: Option<f64>) -> String {
    loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}"))
}

/// A loss in nats and in bits per byte: `1.386 (2.000 bits per byte)`; or a dash.
pub(crate) fn loss_and_bits(nats: Option<f64>) -> String {
    nats.map_or_else(|| "-".to_owned(), |nats| format!("{nats:.3} ({:.3} bits per byte)", bits(nats)))
}

/// A loss in bits per byte, or a dash.
pub(crate) fn bits_per_byte(nats: Option<f64>) -> String {
    loss(nats.map(bits))
}

/// A speed in steps per second, with three figures.
pub(crate) fn speed(steps_per_sec: f64) -> String {
    match steps_per_sec {
        speed if speed <= 0.0 => "-".to_owned(),
        speed if speed < 10.0 => format!("{speed:.2}"),
        speed => format!("{speed:.1}"),
    }
}

/// A figure with its unit: `12.3 GB`, `54 °C`, `1.25`.
pub(crate) fn figure(figure: Figure) -> String {
    match figure {
        Figure::Bytes(count) => bytes(count),
        Figure::Celsius(celsius) => format!("{celsius:.0} °C"),
        Figure::Number(number) => format!("{number:.2}"),
    }
}

/// What a GPU says of itself: `97 % busy, 81 °C, 1.3 GB in use, slowed by heat`.
pub(crate) fn gpu(reading: GpuReading) -> String {
    let parts = [
        reading.busy_percent.map(|percent| format!("{percent} % busy")),
        reading.temperature_celsius.map(|celsius| format!("{celsius} °C")),
        reading.memory_bytes.map(|count| format!("{} in use", bytes(count))),
        reading.slowed_by.map(|by| format!("slowed by {}", by.in_words())),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Reads `90s`, `15m`, `24h`, `7d`, or plain seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit_secs) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        Some(b'd') => (&text[..text.len() - 1], 86_400),
        _ => (text, 1),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is not a duration such as 90s, 15m, 24h or 7d"))?;
    number
        .checked_mul(unit_secs)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("`{text}` is too long a duration"))
}

/// Reads a rate in bytes per second: `500kB/s`, `5MB/s`, `64KiB/s`, or plain bytes.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 8] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("B", 1.0),
        ("", 1.0),
    ];
    let wrong = || format!("`{text}` is not a rate such as 500kB/s or 5MB/s");
    let amount = text.strip_suffix("/s").unwrap_or(text);
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((amount.strip_suffix(unit)?, *bytes)));
    let (number, bytes) = unit.ok_or_else(wrong)?;
    let rate = number.trim().parse::<f64>().map_err(|_| wrong())? * bytes;
    if (1.0..1e18).contains(&rate) { Ok(rate as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use hatchery_common::trainer::Slowdown;

    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!([bytes(12), bytes(1200), bytes(13_100_000)], ["12 B", "1.2 kB", "13.1 MB"]);
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration(Duration::from_millis(850)), "850 ms");
        assert_eq!(parse_duration("7d"), Ok(Duration::from_hours(7 * 24)));
        assert_eq!(parse_rate("5MB/s"), Ok(5_000_000));
        assert_eq!(
            [parse_rate("1.5kB"), parse_rate("64KiB/s"), parse_rate("9")],
            [Ok(1500), Ok(65_536), Ok(9)]
        );
        assert_eq!([figure(Figure::Celsius(53.6)), figure(Figure::Number(1.25))], ["54 °C", "1.25"]);
        let mut reading =
            GpuReading { busy_percent: Some(97), slowed_by: Some(Slowdown::Heat), ..Default::default() };
        assert_eq!(gpu(reading), "97 % busy, slowed by heat");
        reading = GpuReading {
            temperature_celsius: Some(81),
            memory_bytes: Some(1_310_000_000),
            ..Default::default()
        };
        assert_eq!(gpu(reading), "81 °C, 1.3 GB in use");
        assert!(parse_rate("fast").is_err() && parse_rate("-1MB/s").is_err() && parse_rate("NaN").is_err());
        assert!(parse_duration("soon").is_err() && parse_duration("").is_err());
        assert!(parse_duration("99999999999999999999d").is_err());
    }
}
