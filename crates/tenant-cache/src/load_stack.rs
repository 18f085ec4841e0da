//! The loads that the running task is part of, and which of them wait for which.
//!
//! A loader may ask caches. When it asks, directly or through other loads, for what waits for its own result, nobody in
//! that circle could ever end: the lookup that would close it is refused with
//! [`LoadError::Reentrant`](cache_core::LoadError::Reentrant), and so is every load of the circle that fails for it.
//!
//! The waits-for graph is one for the process, since a circle may lead through several caches and registries. Only
//! lookups made from inside a load are in it, so the others pay nothing for it. An edge leads from a load to the load
//! that one of its lookups waits for, and stands for as long as that waits. (Deadlock detection by waits-for graphs:
//! Knapp, *Deadlock Detection in Distributed Databases*, ACM Computing Surveys 19(4), 1987.)

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache_core::LoadError;
use parking_lot::Mutex;
use tokio::task_local;

task_local! {
    static LOADING: LoadStack;
}

/// The loads that the running task is part of, innermost first.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadStack(Option<Arc<Level>>);

/// Loads that go on together: one, or those of a bulk load.
#[derive(Debug)]
struct Level {
    frames: Vec<Arc<Frame>>,
    above: LoadStack,
}

/// One load.
#[derive(Debug)]
pub(crate) struct Frame {
    node: u64,
    domain: Arc<str>,
    text: Arc<str>,
    /// A lookup of the circle that it is part of was refused.
    in_cycle: AtomicBool,
    ended: AtomicBool,
}

impl Frame {
    pub(crate) fn new(node: u64, domain: &Arc<str>, text: &Arc<str>) -> Arc<Self> {
        let (domain, text) = (Arc::clone(domain), Arc::clone(text));
        Arc::new(Self { node, domain, text, in_cycle: false.into(), ended: false.into() })
    }

    fn is_load_of(&self, domain: &str, text: &str) -> bool {
        !self.ended.load(Ordering::Relaxed) && &*self.text == text && &*self.domain == domain
    }

    /// What the load ended with: a failure of one that was part of a circle is due to that.
    pub(crate) fn end<T>(&self, loaded: Result<T, LoadError>) -> Result<T, LoadError> {
        self.ended.store(true, Ordering::Relaxed);
        match loaded {
            Err(LoadError::Failed { domain, .. }) if self.in_cycle.load(Ordering::Relaxed) => {
                Err(LoadError::Reentrant { domain })
            }
            loaded => loaded,
        }
    }
}

impl LoadStack {
    /// Those of the running task.
    pub(crate) fn current() -> Self {
        LOADING.try_with(Self::clone).unwrap_or_default()
    }

    /// These, and further ones inside of them.
    pub(crate) fn with(&self, frames: Vec<Arc<Frame>>) -> Self {
        Self(Some(Arc::new(Level { frames, above: self.clone() })))
    }

    /// Runs a future as part of these loads.
    pub(crate) fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        LOADING.scope(self, work)
    }

    /// The innermost loads.
    pub(crate) fn frames(&self) -> &[Arc<Frame>] {
        self.0.as_ref().map(|level| &level.frames[..]).unwrap_or_default()
    }

    /// What the innermost load ended with.
    pub(crate) fn end<T>(&self, loaded: Result<T, LoadError>) -> Result<T, LoadError> {
        self.frames().iter().fold(loaded, |loaded, frame| frame.end(loaded))
    }

    /// Whether waiting for this key would be waiting for oneself; what asks for it is then part of a circle.
    pub(crate) fn contains(&self, domain: &str, text: &str) -> bool {
        let mut next = &self.0;
        while let Some(level) = next {
            if level.frames.iter().any(|frame| frame.is_load_of(domain, text)) {
                self.mark_up_to(level);
                return true;
            }
            next = &level.above.0;
        }
        false
    }

    fn mark_up_to(&self, last: &Arc<Level>) {
        let mut next = &self.0;
        while let Some(level) = next {
            level.frames.iter().for_each(|frame| frame.in_cycle.store(true, Ordering::Relaxed));
            next = if Arc::ptr_eq(level, last) { &None } else { &level.above.0 };
        }
    }

    /// Says that a lookup of the innermost loads waits for another load, until the edge is dropped. `Err` when that load
    /// waits for one of them already.
    pub(crate) fn wait_for(&self, node: impl FnOnce() -> u64) -> Result<Option<Edge>, Cycle> {
        let Some(level) = &self.0 else { return Ok(None) };
        let to = node();
        let mut graph = GRAPH.lock();
        let graph = graph.get_or_insert_default();
        if graph.closes(&level.frames, to) {
            return Err(Cycle);
        }
        for frame in &level.frames {
            let edges = graph.0.entry(frame.node).or_insert_with(|| (Arc::clone(frame), Vec::new()));
            edges.1.push(to);
        }
        Ok(Some(Edge { level: Arc::clone(level), to }))
    }
}

/// The load that a lookup would wait for waits for the lookup.
#[derive(Debug)]
pub(crate) struct Cycle;

/// The loads that wait, and what they wait for.
#[derive(Debug, Default)]
struct Graph(HashMap<u64, (Arc<Frame>, Vec<u64>)>);

static GRAPH: Mutex<Option<Graph>> = Mutex::new(None);

impl Graph {
    /// Whether a way leads from `to` to one of `frames`; marks the loads along it. Linear in the edges that are met.
    fn closes(&self, frames: &[Arc<Frame>], to: u64) -> bool {
        let mut came_from = HashMap::from([(to, to)]);
        let mut open = vec![to];
        while let Some(at) = open.pop() {
            if let Some(closing) = frames.iter().find(|frame| frame.node == at) {
                closing.in_cycle.store(true, Ordering::Relaxed);
                self.mark(&came_from, at);
                return true;
            }
            for next in self.0.get(&at).map(|(_, edges)| &edges[..]).unwrap_or_default() {
                if !came_from.contains_key(next) {
                    came_from.insert(*next, at);
                    open.push(*next);
                }
            }
        }
        false
    }

    fn mark(&self, came_from: &HashMap<u64, u64>, mut at: u64) {
        loop {
            if let Some((frame, _)) = self.0.get(&at) {
                frame.in_cycle.store(true, Ordering::Relaxed);
            }
            match came_from.get(&at) {
                Some(before) if *before != at => at = *before,
                _ => return,
            }
        }
    }
}

/// That loads wait for another one.
#[derive(Debug)]
pub(crate) struct Edge {
    level: Arc<Level>,
    to: u64,
}

impl Drop for Edge {
    fn drop(&mut self) {
        let mut graph = GRAPH.lock();
        let Some(graph) = graph.as_mut() else { return };
        for frame in &self.level.frames {
            let Some((_, edges)) = graph.0.get_mut(&frame.node) else { continue };
            if let Some(at) = edges.iter().position(|to| *to == self.to) {
                edges.swap_remove(at);
            }
            if edges.is_empty() {
                graph.0.remove(&frame.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(node: u64) -> (LoadStack, Arc<Frame>) {
        let frame = Frame::new(node, &"d".into(), &node.to_string().into());
        (LoadStack::default().with(vec![Arc::clone(&frame)]), frame)
    }

    fn failed() -> Result<(), LoadError> {
        let source: Box<dyn std::error::Error + Send + Sync> = "no".into();
        Err(LoadError::Failed { domain: "d".into(), source: source.into() })
    }

    #[test]
    fn a_circle_of_any_length_is_refused_and_marks_its_members() {
        let base = 1 << 40;
        let loads: Vec<_> = (0..4).map(|n| inside(base + n)).collect();
        let outside = inside(base + 9);
        let _waiting: Vec<_> = (0..3).map(|n| loads[n].0.wait_for(|| base + n as u64 + 1).unwrap()).collect();
        let _other = outside.0.wait_for(|| base).unwrap();
        assert!(loads[3].0.wait_for(|| base).is_err());
        for (_, frame) in &loads {
            assert!(matches!(frame.end(failed()), Err(LoadError::Reentrant { .. })));
        }
        assert!(
            matches!(outside.1.end(failed()), Err(LoadError::Failed { .. })),
            "it only waits for the circle"
        );
    }

    #[test]
    fn who_no_longer_waits_closes_no_circle() {
        let base = 2 << 40;
        let (one, other) = (inside(base), inside(base + 1));
        let waiting = one.0.wait_for(|| base + 1).unwrap();
        assert!(other.0.wait_for(|| base).is_err());
        drop(waiting);
        assert!(other.0.wait_for(|| base).is_ok());
        let left = GRAPH.lock().as_ref().map(|graph| graph.0.keys().filter(|node| **node >> 40 == 2).count());
        assert_eq!(left, Some(0), "nothing is kept of who does not wait");
    }

    #[test]
    fn a_load_cannot_wait_for_itself() {
        let (stack, frame) = inside(3 << 40);
        assert!(stack.wait_for(|| 3 << 40).is_err());
        assert!(stack.contains("d", &frame.text));
        let _ = frame.end(Ok(()));
        assert!(!stack.contains("d", &frame.text), "it has ended");
    }
}
