//! Links as fluids: every node has an uplink and a downlink, and flows share them.

/// How flows share links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Max-min fair over all links; the work grows with their number at each change.
    MaxMin,
    /// Each flow gets the smaller of its equal shares at both ends; what it leaves at one end nobody else takes, so this
    /// makes links look worse than they are. The work at a change is that of two nodes.
    EqualShares,
}

/// A flow's number.
pub type FlowId = usize;

#[derive(Debug, Clone)]
struct Flow {
    from: usize,
    to: usize,
    bytes: f64,
    left_bytes: f64,
    bytes_per_sec: f64,
    /// When `left_bytes` was true.
    at: f64,
    is_open: bool,
}

/// One node's ends of its flows.
#[derive(Debug, Default)]
struct Ends {
    up: f64,
    down: f64,
    out: Vec<FlowId>,
    into: Vec<FlowId>,
    /// Seconds of flows outwards, until when they are counted.
    flow_secs: f64,
    counted_at: f64,
}

#[derive(Debug)]
pub struct Links {
    sharing: Sharing,
    flows: Vec<Flow>,
    free: Vec<FlowId>,
    nodes: Vec<Ends>,
    touched: Vec<usize>,
}

impl Links {
    pub fn new(sharing: Sharing, up_and_down: impl Iterator<Item = (f64, f64)>) -> Self {
        let nodes = up_and_down.map(|(up, down)| Ends { up, down, ..Ends::default() }).collect();
        Self { sharing, flows: Vec::new(), free: Vec::new(), nodes, touched: Vec::new() }
    }

    /// Starts a flow; [`Links::settle`] gives it a rate.
    pub fn start(&mut self, from: usize, to: usize, bytes: f64, now: f64) -> FlowId {
        let flow = Flow { from, to, bytes, left_bytes: bytes, bytes_per_sec: 0.0, at: now, is_open: true };
        let id = if let Some(id) = self.free.pop() {
            self.flows[id] = flow;
            id
        } else {
            self.flows.push(flow);
            self.flows.len() - 1
        };
        self.count(from, now);
        self.nodes[from].out.push(id);
        self.nodes[to].into.push(id);
        self.touched.extend([from, to]);
        id
    }

    /// Ends a flow, and says how many bytes it has not brought over.
    pub fn end(&mut self, id: FlowId, now: f64) -> f64 {
        let Flow { from, to, left_bytes, bytes_per_sec, at, .. } = self.flows[id];
        self.flows[id].is_open = false;
        self.free.push(id);
        self.count(from, now);
        self.nodes[from].out.retain(|&flow| flow != id);
        self.nodes[to].into.retain(|&flow| flow != id);
        self.touched.extend([from, to]);
        (left_bytes - bytes_per_sec * (now - at)).max(0.0)
    }

    /// The link of a node is from now on as fast as this.
    pub fn set(&mut self, node: usize, up: f64, down: f64) {
        (self.nodes[node].up, self.nodes[node].down) = (up, down);
        self.touched.push(node);
    }

    /// Bytes that a node's open flows have brought over, outwards or inwards.
    pub fn moved_bytes(&self, node: usize, outwards: bool, now: f64) -> f64 {
        let flows = if outwards { &self.nodes[node].out } else { &self.nodes[node].into };
        flows
            .iter()
            .map(|&id| {
                let flow = &self.flows[id];
                flow.bytes - flow.left_bytes + flow.bytes_per_sec * (now - flow.at)
            })
            .sum()
    }

    /// Seconds that a node's flows outwards have taken so far, all together.
    pub fn flow_secs(&self, node: usize, now: f64) -> f64 {
        let ends = &self.nodes[node];
        ends.flow_secs + ends.out.len() as f64 * (now - ends.counted_at)
    }

    fn count(&mut self, node: usize, now: f64) {
        self.nodes[node].flow_secs = self.flow_secs(node, now);
        self.nodes[node].counted_at = now;
    }

    /// When a flow will be through as things are; never for one that stands still.
    pub fn end_at(&self, id: FlowId) -> f64 {
        let flow = &self.flows[id];
        if flow.bytes_per_sec > 0.0 { flow.at + flow.left_bytes / flow.bytes_per_sec } else { f64::INFINITY }
    }

    /// Gives rates after flows have come and gone; `changed` hears of each flow whose rate is another now.
    pub fn settle(&mut self, now: f64, mut changed: impl FnMut(FlowId)) {
        if self.touched.is_empty() {
            return;
        }
        let mut touched = std::mem::take(&mut self.touched);
        let rates = match self.sharing {
            Sharing::MaxMin => self.max_min(),
            Sharing::EqualShares => {
                touched.sort_unstable();
                touched.dedup();
                let ids = touched
                    .iter()
                    .flat_map(|&node| self.nodes[node].out.iter().chain(&self.nodes[node].into));
                let share = |&id: &FlowId| {
                    let Flow { from, to, .. } = self.flows[id];
                    let (from, to) = (&self.nodes[from], &self.nodes[to]);
                    (id, (from.up / from.out.len() as f64).min(to.down / to.into.len() as f64))
                };
                ids.map(share).collect()
            }
        };
        touched.clear();
        self.touched = touched;
        for (id, bytes_per_sec) in rates {
            let flow = &mut self.flows[id];
            if (flow.bytes_per_sec - bytes_per_sec).abs() > 1e-9 * bytes_per_sec {
                flow.left_bytes = (flow.left_bytes - flow.bytes_per_sec * (now - flow.at)).max(0.0);
                (flow.bytes_per_sec, flow.at) = (bytes_per_sec, now);
                changed(id);
            }
        }
    }

    /// Fills all flows evenly until a link is full; its flows keep what they have, and so on with the others.
    fn max_min(&self) -> Vec<(FlowId, f64)> {
        let count = self.nodes.len();
        let mut left: Vec<f64> =
            self.nodes.iter().map(|node| node.up).chain(self.nodes.iter().map(|node| node.down)).collect();
        let mut open: Vec<usize> = (self.nodes.iter().map(|node| node.out.len()))
            .chain(self.nodes.iter().map(|node| node.into.len()))
            .collect();
        let mut given: Vec<(FlowId, f64)> = Vec::new();
        let mut done = vec![false; self.flows.len()];
        loop {
            let share = |link: usize| left[link] / open[link] as f64;
            let links = (0..2 * count).filter(|&link| open[link] > 0);
            let Some(fullest) = links.min_by(|&a, &b| share(a).total_cmp(&share(b))) else { return given };
            let rate = share(fullest).max(0.0);
            let node = &self.nodes[fullest % count];
            let flows = if fullest < count { &node.out } else { &node.into };
            for &id in flows {
                if !done[id] {
                    done[id] = true;
                    given.push((id, rate));
                    for link in [self.flows[id].from, count + self.flows[id].to] {
                        left[link] -= rate;
                        open[link] -= 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(sharing: Sharing) -> Vec<f64> {
        // One uplink of 10 to two nodes, of which one can take 2 and gets from another node as well.
        let mut links = Links::new(sharing, [(10.0, 10.0), (10.0, 2.0), (10.0, 20.0)].into_iter());
        let flows = [(0, 1), (0, 2), (2, 1)].map(|(from, to)| links.start(from, to, 100.0, 0.0));
        links.settle(0.0, |_| {});
        flows.map(|id| links.flows[id].bytes_per_sec).to_vec()
    }

    #[test]
    fn flows_share_links() {
        assert_eq!(rates(Sharing::MaxMin), [1.0, 9.0, 1.0]);
        assert_eq!(rates(Sharing::EqualShares), [1.0, 5.0, 1.0]);
    }
}
