//! `scripts/stack`, the one place that knows how the parts are started.

use std::{collections::HashMap, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use tokio::{process::Command, sync::OnceCell};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/stack");

/// Started at the first need, for all tests of this process; its supervisor takes it down after us.
static SHARED: OnceCell<Stack> = OnceCell::const_new();

/// The value of an address variable: from the environment, else of the stack of this process.
pub(crate) async fn shared(variable: &str) -> Result<String> {
    if let Some(address) = std::env::var(variable).ok().filter(|value| !value.is_empty()) {
        return Ok(address);
    }
    let stack = SHARED
        .get_or_try_init(|| async {
            let stack = Stack::new("kafka postgres redis");
            stack.up().await?;
            anyhow::Ok(stack)
        })
        .await
        .with_context(|| {
            format!("{variable} is not set, and the parts could not be started on this machine")
        })?;
    stack.address(variable).await
}

/// Parts in a temporary folder of their own, which end with this process.
#[derive(Debug)]
pub(crate) struct Stack {
    folder: PathBuf,
    settings: HashMap<&'static str, String>,
}

impl Stack {
    /// `parts`: some of `kafka postgres redis`. Nothing runs before [`Stack::up`].
    pub(crate) fn new(parts: &str) -> Stack {
        let folder = std::env::temp_dir().join(format!("bulker-stack.{}", uuid::Uuid::new_v4()));
        let settings = HashMap::from([
            ("STACK", "native".to_owned()),
            ("STACK_PARTS", parts.to_owned()),
            ("STACK_DATA", folder.display().to_string()),
            ("STACK_DURABLE", "no".to_owned()),
            ("STACK_WATCH_PID", std::process::id().to_string()),
            ("STACK_KAFKA_PORT", "free".to_owned()),
            ("STACK_POSTGRES_PORT", "free".to_owned()),
            ("STACK_REDIS_PORT", "free".to_owned()),
        ]);
        Stack { folder, settings }
    }

    /// Another of the variables that `scripts/stack help` lists.
    pub(crate) fn with(mut self, variable: &'static str, value: impl Into<String>) -> Stack {
        self.settings.insert(variable, value.into());
        self
    }

    /// Starts what does not run and waits until it answers; the ports stay the same from start to
    /// start.
    pub(crate) async fn up(&self) -> Result<()> {
        let output = Command::new(SCRIPT)
            .arg("up")
            .envs(&self.settings)
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| format!("run {SCRIPT}"))?;
        if !output.status.success() {
            bail!("scripts/stack up failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// An address as the variable of that name would give it.
    pub(crate) async fn address(&self, variable: &str) -> Result<String> {
        let output =
            Command::new(SCRIPT).arg("env").envs(&self.settings).stdin(Stdio::null()).output();
        let output = output.await.with_context(|| format!("run {SCRIPT}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .find_map(|(name, value)| (name == variable).then(|| value.to_owned()))
            .with_context(|| format!("scripts/stack env does not name {variable}"))
    }

    /// What a part wrote.
    pub(crate) fn log_of(&self, part: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{part}.log"))
    }

    /// The process of a part, as it recorded itself.
    pub(crate) fn process_of(&self, part: &str) -> Result<i32> {
        let path = self.folder.join("run").join(format!("{part}.pid"));
        let record =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let pid = record.split(' ').next().unwrap_or_default();
        pid.parse().with_context(|| format!("{} holds no process id", path.display()))
    }
}

impl Drop for Stack {
    /// Takes everything down at once, data included.
    fn drop(&mut self) {
        if self.folder.exists() {
            let down = std::process::Command::new(SCRIPT)
                .args(["down", "--wipe"])
                .envs(&self.settings)
                .stdin(Stdio::null())
                .status();
            if let Err(error) = down {
                eprintln!("testkit: cannot take {} down: {error}", self.folder.display());
            }
        }
    }
}
