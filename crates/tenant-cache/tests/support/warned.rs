//! Hearing of what is logged as a warning.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

/// What this thread warned of since it began to listen.
pub struct Warned {
    texts: Texts,
    _listening: DefaultGuard,
}

type Texts = Arc<Mutex<Vec<String>>>;

impl Warned {
    pub fn listen() -> Self {
        let texts = Texts::default();
        let listening = tracing::subscriber::set_default(Listener(Arc::clone(&texts)));
        Self { texts, _listening: listening }
    }

    /// The warnings that hold all of these words.
    pub fn with(&self, words: &[&str]) -> usize {
        let texts = self.texts.lock().unwrap();
        texts.iter().filter(|text| words.iter().all(|word| text.contains(word))).count()
    }

    pub fn all(&self) -> Vec<String> {
        self.texts.lock().unwrap().clone()
    }
}

struct Listener(Texts);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}
