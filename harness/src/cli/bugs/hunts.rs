//! What was measured, kept beside the programs.

use super::BugsArgs;
use crate::bugs::Bug;
use crate::cli::hunt::Hunt;
use crate::cli::nursery::Nursery;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The hunts of one bug.
pub(super) struct Hunts {
    file: PathBuf,
    kept: Kept,
}

/// What is in the file.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// What the hunts were made with. Those of another program, time or engine say nothing about this one.
    setting: (String, u64, Option<String>),
    by_seed: BTreeMap<u64, Hunt>,
}

impl Hunts {
    /// Reads what is known; nothing, if the program or the setting is another one or all is to be measured again.
    pub(super) fn of(nursery: &Nursery, bug: &Bug, args: &BugsArgs) -> Result<Self, String> {
        let folder = nursery.place("hunts");
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let file = folder.join(format!("{}.json", bug.name));
        let setting = (nursery.noted_key(bug)?, args.seconds, args.engine.clone());
        let read = || serde_json::from_slice::<Kept>(&fs::read(&file).ok()?).ok();
        let known = if args.again { None } else { read() };
        let kept = known.filter(|kept| kept.setting == setting);
        Ok(Self { file, kept: kept.unwrap_or_else(|| Kept { setting, by_seed: BTreeMap::new() }) })
    }

    pub(super) fn get(&self, seed: u64) -> Option<&Hunt> {
        self.kept.by_seed.get(&seed)
    }

    pub(super) fn keep(&mut self, seed: u64, hunt: Hunt) -> Result<(), String> {
        self.kept.by_seed.insert(seed, hunt);
        let text = serde_json::to_string(&self.kept).map_err(|e| e.to_string())?;
        fs::write(&self.file, text).map_err(|e| format!("{}: {e}", self.file.display()))
    }
}
