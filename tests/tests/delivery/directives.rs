//! Unit files must load on systemd 239 (EL8), which cannot be booted here: each directive is checked against what it knows.

use std::fs;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::trees::{name, unit_files};
use crate::trial;

/// Those of systemd 239's directives that there is a use for, by section; from its `load-fragment-gperf.gperf.m4` as EL8 has it.
/// A directive that is missing here but is in that file may be added; one that is not in that file belongs in a drop-in for later
/// versions.
const KNOWN: [(&str, &str); 5] = [
    (
        "Unit",
        "Description Documentation Requires Requisite Wants BindsTo PartOf Conflicts Before After OnFailure \
         RequiresMountsFor StopWhenUnneeded RefuseManualStart RefuseManualStop DefaultDependencies JobTimeoutSec \
         JobRunningTimeoutSec StartLimitIntervalSec StartLimitBurst StartLimitAction ConditionPathExists \
         ConditionPathExistsGlob ConditionPathIsDirectory ConditionPathIsMountPoint ConditionPathIsReadWrite \
         ConditionDirectoryNotEmpty ConditionFileNotEmpty ConditionFileIsExecutable ConditionKernelCommandLine \
         ConditionKernelVersion ConditionVirtualization ConditionSecurity ConditionCapability",
    ),
    (
        "Service",
        "Type ExecStartPre ExecStart ExecStartPost ExecReload ExecStop ExecStopPost RestartSec TimeoutStartSec \
         TimeoutStopSec TimeoutSec RuntimeMaxSec WatchdogSec Restart RemainAfterExit PIDFile SuccessExitStatus \
         RestartPreventExitStatus RestartForceExitStatus NotifyAccess FileDescriptorStoreMax WorkingDirectory Nice \
         OOMScoreAdjust IOSchedulingClass IOSchedulingPriority CPUSchedulingPolicy UMask Environment EnvironmentFile \
         StandardInput StandardOutput StandardError SyslogIdentifier LogRateLimitIntervalSec LogRateLimitBurst \
         CapabilityBoundingSet AmbientCapabilities NoNewPrivileges SystemCallFilter SystemCallArchitectures \
         MemoryDenyWriteExecute RestrictNamespaces RestrictRealtime RestrictAddressFamilies LockPersonality \
         LimitCORE LimitNOFILE LimitNPROC LimitMEMLOCK ReadWritePaths ReadOnlyPaths InaccessiblePaths PrivateTmp \
         PrivateDevices ProtectKernelTunables ProtectKernelModules ProtectControlGroups PrivateMounts ProtectSystem \
         ProtectHome RuntimeDirectory RuntimeDirectoryMode RuntimeDirectoryPreserve StateDirectory StateDirectoryMode \
         SendSIGKILL KillMode KillSignal Slice CPUWeight MemoryMax MemoryHigh MemoryLow TasksMax Delegate",
    ),
    (
        "Timer",
        "OnCalendar OnActiveSec OnBootSec OnStartupSec OnUnitActiveSec OnUnitInactiveSec Persistent WakeSystem \
         RemainAfterElapse AccuracySec RandomizedDelaySec Unit",
    ),
    ("Path", "PathExists PathExistsGlob PathChanged PathModified DirectoryNotEmpty Unit MakeDirectory DirectoryMode"),
    ("Install", "Alias WantedBy RequiredBy Also DefaultInstance"),
];

pub fn trials() -> Vec<Trial> {
    vec![
        trial("units: every directive and value is one of systemd 239", all_known),
        trial("units: every ordering and requirement has its reason above it", all_reasoned),
    ]
}

fn all_known() -> Result<()> {
    let mut wrong = Vec::new();
    for file in unit_files()? {
        wrong.extend(unknown(&fs::read_to_string(&file)?).into_iter().map(|line| format!("{}: {line}", name(&file))));
    }
    ensure!(wrong.is_empty(), "systemd 239 does not take\n{}", wrong.join("\n"));
    for bad in ["[Service]\nRestartSteps=2", "[Service]\nType=exec", "[Service]\nType=oneshot\nRestart=on-failure"] {
        ensure!(!unknown(bad).is_empty(), "this check lets {bad:?} pass");
    }
    Ok(())
}

/// Lines that systemd 239 would warn of or refuse.
fn unknown(text: &str) -> Vec<String> {
    let mut section = "";
    let mut wrong = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])).collect();
    for line in &lines {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
            continue;
        }
        let key = line.split('=').next().unwrap_or_default();
        let known = KNOWN.iter().any(|(s, keys)| *s == section && keys.split_whitespace().any(|k| k == key));
        // 240 brought Type=exec and append:, 242 a colon before a program, 246 KillMode's warnings
        let value = matches!(*line, "Type=exec") || line.contains("=append:") || line.starts_with("ExecStart=:");
        if !known || value {
            wrong.push(format!("[{section}] {line}"));
        }
    }
    // refused before 244
    if lines.contains(&"Type=oneshot") && lines.iter().any(|l| l.starts_with("Restart=") && *l != "Restart=no") {
        wrong.push("Restart= with Type=oneshot".into());
    }
    wrong
}

fn all_reasoned() -> Result<()> {
    let mut bare = Vec::new();
    for file in unit_files()? {
        let text = fs::read_to_string(&file)?;
        let mut reasoned = false;
        for line in text.lines() {
            let ordering =
                ["After=", "Before=", "Requires=", "Wants=", "Conflicts="].iter().any(|k| line.starts_with(k));
            match line {
                "" => reasoned = false,
                _ if line.starts_with('#') => reasoned = true,
                // one reason may cover several lines that follow it
                _ if ordering && !reasoned => bare.push(format!("{}: {line}", name(&file))),
                _ if !ordering
                    && !line.starts_with("RequiresMountsFor=")
                    && !line.starts_with("DefaultDependencies=") =>
                {
                    reasoned = line.starts_with("Condition") && reasoned;
                }
                _ => {}
            }
        }
    }
    ensure!(bare.is_empty(), "no reason is given for\n{}", bare.join("\n"));
    Ok(())
}
