//! What can be seen of the machine's other use: its power, what other programs need, when its owner last touched it.
//!
//! | | Linux | macOS |
//! |---|---|---|
//! | power | `/sys/class/power_supply` | `pmset -g batt` |
//! | load | processor time of all processes less that of our own | the same |
//! | owner | when something was last typed in a terminal; what the desktop tells logind | `HIDIdleTime` of `ioreg` |
//!
//! Keyboards and mice themselves are not read, though they could be by whoever may: a program that sees every key is not one
//! to have on one's machine. A desktop that never tells logind that it is idle counts as in use while it is logged in.

use std::{
    ffi::OsStr,
    fs, io,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hatchery_net::blocking;
use tokio::{process::Command, time::timeout};

use super::{AvailabilitySettings, load::LoadMeter};

/// Where Linux says what feeds the machine.
const POWER_SUPPLIES: &str = "/sys/class/power_supply";
const TERMINALS: [(&str, &str); 2] = [("/dev/pts", ""), ("/dev", "tty")];
/// Where logind keeps the seats, if there is logind.
const SEATS: &str = "/run/systemd/seats";
/// How long a program that is asked may take.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// What is seen. None: nobody asked for it, it is not known yet, or it cannot be seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Whether the machine runs on its battery.
    pub on_battery: Option<bool>,
    /// The part of the processor, of all cores, that programs other than the agent's own use: 0 to 1.
    pub others_load: Option<f64>,
    /// How long ago the owner last touched a keyboard or a mouse.
    pub owner_idle: Option<Duration>,
    /// What was asked for and cannot be seen, each with the reason.
    pub problems: Vec<String>,
}

/// Looks at this machine. Clones remember together.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsageMeter {
    meter: Arc<Mutex<LoadMeter>>,
}

impl UsageMeter {
    /// Looks at what `policy` asks for.
    pub(crate) async fn look(&self, policy: &AvailabilitySettings) -> Usage {
        let mut usage = Usage::default();
        if policy.mains_power_only {
            usage.on_battery = noted("power", on_battery().await, &mut usage.problems);
        }
        if policy.load_max.is_some() {
            let meter = Arc::clone(&self.meter);
            let measure = move || meter.lock().unwrap_or_else(PoisonError::into_inner).measure();
            usage.others_load = noted("load", blocking(measure).await, &mut usage.problems).flatten();
        }
        if policy.owner_idle_secs_min.is_some() {
            usage.owner_idle = noted("owner", owner_idle().await, &mut usage.problems).flatten();
        }
        usage
    }
}

fn noted<T>(what: &str, seen: Result<T, String>, problems: &mut Vec<String>) -> Option<T> {
    match seen {
        Ok(seen) => Some(seen),
        Err(why) => {
            problems.push(format!("availability: {what} cannot be read and is not considered: {why}"));
            None
        }
    }
}

async fn on_battery() -> Result<bool, String> {
    if cfg!(target_os = "macos") {
        return Ok(ask("pmset", &["-g", "batt"]).await?.contains("'Battery Power'"));
    }
    blocking(|| supplies_on_battery(Path::new(POWER_SUPPLIES))).await
}

/// Whether a battery of the machine itself is being emptied and nothing feeds it. A machine without one has mains power.
fn supplies_on_battery(folder: &Path) -> Result<bool, String> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("{}: {error}", folder.display())),
    };
    let (mut fed, mut discharges) = (false, false);
    for supply in entries.flatten() {
        let word = |name| fs::read_to_string(supply.path().join(name)).unwrap_or_default().trim().to_owned();
        // A mouse has a battery, too.
        if word("scope") == "Device" {
            continue;
        }
        match word("type").as_str() {
            "Battery" => discharges |= word("status") == "Discharging",
            "Mains" | "USB" => fed |= word("online") == "1",
            _ => {}
        }
    }
    Ok(discharges && !fed)
}

/// None: there is no terminal and no desktop at which anybody could be.
async fn owner_idle() -> Result<Option<Duration>, String> {
    if cfg!(target_os = "macos") {
        let said = ask("ioreg", &["-c", "IOHIDSystem", "-d", "4"]).await?;
        return hid_idle(&said).map(Some).ok_or_else(|| "ioreg does not report HIDIdleTime".to_owned());
    }
    let typed = blocking(last_typed).await;
    let now = SystemTime::now();
    let at_terminal = typed.map(|typed| now.duration_since(typed).unwrap_or_default());
    if !Path::new(SEATS).exists() {
        return Ok(at_terminal);
    }
    let said = ask("loginctl", &["show-session", "--property=IdleHint", "--property=IdleSinceHint"]).await?;
    let at_desktop = logind_idle(&said, now);
    Ok(at_terminal.into_iter().chain(at_desktop).min())
}

/// When something was last typed in any terminal: reading what was typed moves its access time, output does not.
fn last_typed() -> Option<SystemTime> {
    let is_terminal = |name: &OsStr, start: &str| {
        let digits = name.to_str().and_then(|name| name.strip_prefix(start));
        digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let entries = TERMINALS.iter().flat_map(|(folder, start)| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(move |entry| is_terminal(&entry.file_name(), start))
    });
    entries.filter_map(|entry| entry.metadata().ok()?.accessed().ok()).max()
}

/// What logind says of all sessions, desktops among them. None: nobody is logged in at one, or has been idle since the
/// machine started.
fn logind_idle(said: &str, now: SystemTime) -> Option<Duration> {
    let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    if value("IdleHint")? == "no" {
        return Some(Duration::ZERO);
    }
    let since_us: u64 = value("IdleSinceHint")?.parse().ok().filter(|since| *since > 0)?;
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(since_us))?;
    Some(now.duration_since(since).unwrap_or_default())
}

/// `"HIDIdleTime" = 1234567890`, in nanoseconds.
fn hid_idle(said: &str) -> Option<Duration> {
    let nanos = said.lines().find_map(|line| line.split_once("\"HIDIdleTime\" = "))?.1;
    nanos.trim().parse().ok().map(Duration::from_nanos)
}

/// What a program of the system says.
async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let asked = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(ASK_WITHIN, asked)
        .await
        .map_err(|_| format!("{program} does not respond"))?
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_battery_counts_only_if_it_is_the_machines_and_is_being_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, says: &[(&str, &str)]| {
            let supply = folder.path().join(name);
            fs::create_dir_all(&supply).unwrap();
            for (file, word) in says {
                fs::write(supply.join(file), format!("{word}\n")).unwrap();
            }
        };
        let on_battery = || supplies_on_battery(folder.path());
        assert_eq!(supplies_on_battery(&folder.path().join("none")), Ok(false));
        supply("hidpp_battery_0", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        assert_eq!(on_battery(), Ok(false), "a mouse's");
        supply("BAT0", &[("type", "Battery"), ("status", "Charging")]);
        supply("AC", &[("type", "Mains"), ("online", "1")]);
        assert_eq!(on_battery(), Ok(false));
        supply("BAT0", &[("status", "Discharging")]);
        assert_eq!(on_battery(), Ok(false), "a weak charger is one all the same");
        supply("AC", &[("online", "0")]);
        assert_eq!(on_battery(), Ok(true));
    }

    #[test]
    fn idleness_is_read_as_it_is_said() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let idle = |said| logind_idle(said, now);
        assert_eq!(idle("IdleHint=no\nIdleSinceHint=0\n"), Some(Duration::ZERO));
        assert_eq!(idle("IdleHint=yes\nIdleSinceHint=940000000\n"), Some(Duration::from_mins(1)));
        assert_eq!(idle("IdleHint=yes\nIdleSinceHint=0\n"), None);
        assert_eq!(idle(""), None);
        let said = "    | |   \"HIDServiceSupport\" = Yes\n    | |   \"HIDIdleTime\" = 61000000000\n";
        assert_eq!(hid_idle(said), Some(Duration::from_secs(61)));
        assert_eq!(hid_idle("nothing"), None);
    }

    #[tokio::test]
    async fn what_nobody_asked_for_is_not_looked_at_and_what_cannot_be_asked_is_said() {
        assert_eq!(UsageMeter::default().look(&AvailabilitySettings::default()).await, Usage::default());
        let why = ask("hatchery-there-is-no-such-program", &[]).await.unwrap_err();
        let mut problems = Vec::new();
        assert_eq!(noted::<()>("power", Err(why), &mut problems), None);
        assert!(
            problems[0]
                .starts_with("availability: power cannot be read and is not considered: hatchery-there")
        );
    }

    #[tokio::test]
    async fn this_machine_can_be_looked_at() {
        let policy = AvailabilitySettings {
            mains_power_only: true,
            load_max: Some(0.5),
            owner_idle_secs_min: Some(60),
            ..Default::default()
        };
        let meter = UsageMeter::default();
        meter.look(&policy).await;
        let seen = meter.look(&policy).await;
        assert!(seen.on_battery.is_some() || !seen.problems.is_empty(), "{seen:?}");
        assert!(seen.others_load.is_none_or(|load| (0.0..=1.0).contains(&load)), "{seen:?}");
    }
}
