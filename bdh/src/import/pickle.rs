//! A reader of pickles that runs nothing. It knows the opcodes that `torch.save` writes (protocol 2) and a handful of
//! names, which it takes as marks; whatever else a pickle names is refused.
//!
//! Values live in one list and name each other by their place in it, so that no nesting is too deep and no circle
//! leaks. Every opcode makes at most one value: memory is bounded by the pickle's length, which the caller bounds.

use std::collections::HashMap;

/// Longest name of a storage: a number. The name stands in every tensor that lies in the storage.
const KEY_BYTES_MAX: usize = 20;

/// A value's place.
pub(super) type Place = usize;

/// What a pickle is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Place>),
    List(Vec<Place>),
    /// Keys and values in the order in which they were set.
    Dict(Vec<(Place, Place)>),
    Mark(Mark),
    /// The bytes of tensors, which stand outside of the pickle.
    Storage(Storage),
    Tensor(Tensor),
    /// An object of a class called `BDHConfig`: nothing but its attributes, a dictionary once they are known.
    Config(Option<Place>),
}

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Config,
    StorageOf(Number),
}

/// The kinds of numbers in a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    F64,
    F32,
    F16,
    BF16,
    /// Integers and the like, of no use for weights.
    Other,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub(super) number: Number,
    /// The name of its entry, after `data/`.
    pub(super) key: String,
    pub(super) len: i64,
}

/// A view into a storage, not yet checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// Why a pickle is not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PickleError {
    /// It names something that is none of the [`Mark`]s.
    Forbidden(String),
    /// It is damaged, or made otherwise than by `torch.save`.
    Wrong { at: usize, problem: String },
}

/// A whole pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Place,
}

impl Pickle {
    /// Reads a pickle to its end.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { values: machine.values, root }),
                Err(Stop::Forbidden(name)) => return Err(PickleError::Forbidden(name)),
                Err(Stop::Wrong(problem)) => return Err(PickleError::Wrong { at, problem }),
            }
        }
    }

    /// What it all comes to.
    pub(super) fn root(&self) -> &Value {
        &self.values[self.root]
    }

    pub(super) fn value(&self, place: Place) -> &Value {
        &self.values[place]
    }
}

enum Stop {
    Forbidden(String),
    Wrong(String),
}

fn wrong<T>(problem: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Wrong(problem.into()))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Place>,
}

impl Machine<'_> {
    /// Does one opcode; at the last one, gives the result.
    fn step(&mut self) -> Result<Option<Place>, Stop> {
        match self.array::<1>()?[0] {
            0x80 => {
                let [protocol] = self.array()?;
                if protocol != 2 {
                    return wrong(format!("it has protocol {protocol}, but torch.save writes 2"));
                }
            }
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'q' => {
                let [slot] = self.array()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.remember(slot)?;
            }
            b'h' => {
                let [slot] = self.array()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.recall(slot)?;
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let [number] = self.array()?;
                self.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()));
            }
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(number));
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                let text = self.take(length as usize)?.to_vec();
                match String::from_utf8(text) {
                    Ok(text) => self.push(Value::Text(text)),
                    Err(_) => return wrong("a string in it is not UTF-8"),
                }
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let mark = mark(&module, &name)?;
                self.push(Value::Mark(mark));
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let parts = self.above_mark()?;
                self.push(Value::Tuple(parts));
            }
            opcode @ 0x85..=0x87 => {
                let mut parts = vec![0; usize::from(opcode - 0x84)];
                for part in parts.iter_mut().rev() {
                    *part = self.pop()?;
                }
                self.push(Value::Tuple(parts));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set(&items)?;
            }
            b'Q' => {
                let name = self.pop()?;
                let storage = self.storage(name)?;
                self.push(Value::Storage(storage));
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let made = self.call(callable, arguments)?;
                self.push(made);
            }
            b'b' => self.build()?,
            other => return wrong(format!("torch.save does not write the opcode {other:#04x}")),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Stop> {
        let Some(taken) = self.bytes[self.at..].get(..count) else {
            return wrong("it is cut off");
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        Ok(*self.take(N)?.first_chunk().expect("so many bytes were taken"))
    }

    fn line(&mut self) -> Result<String, Stop> {
        let Some(length) = self.bytes[self.at..].iter().position(|byte| *byte == b'\n') else {
            return wrong("it is cut off");
        };
        let line = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.at += 1;
        Ok(line)
    }

    /// A whole number of up to eight bytes.
    fn long(&mut self) -> Result<(), Stop> {
        let [length] = self.array()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return wrong("a whole number in it has more than 64 bits");
        }
        let fill = if bytes.last().is_some_and(|last| *last >= 0x80) { 0xFF } else { 0 };
        let mut number = [fill; 8];
        number[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(number)));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// Takes the top of the stack, down to the last mark at most.
    fn pop(&mut self) -> Result<Place, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return wrong("it pops a value from an empty stack");
        }
        Ok(self.stack.pop().expect("it is not empty"))
    }

    fn top(&self) -> Result<Place, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.get(floor..).and_then(<[Place]>::last) {
            Some(place) => Ok(*place),
            None => wrong("it uses a value of an empty stack"),
        }
    }

    fn above_mark(&mut self) -> Result<Vec<Place>, Stop> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => wrong("it lacks a mark where one is needed"),
        }
    }

    fn remember(&mut self, slot: u32) -> Result<(), Stop> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), Stop> {
        match self.memo.get(&slot) {
            Some(place) => {
                self.stack.push(*place);
                Ok(())
            }
            None => wrong(format!("it recalls slot {slot}, which is empty")),
        }
    }

    fn append(&mut self, new: &[Place]) -> Result<(), Stop> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(items) => items.extend(new),
            _ => return wrong("it appends to something that is not a list"),
        }
        Ok(())
    }

    fn set(&mut self, new: &[Place]) -> Result<(), Stop> {
        let dict = self.top()?;
        let (pairs, rest) = new.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(items) if rest.is_empty() => {
                items.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            _ => return wrong("it sets items of something that is not a dictionary, or half an item"),
        }
        Ok(())
    }

    fn storage(&self, name: Place) -> Result<Storage, Stop> {
        if let Value::Tuple(parts) = &self.values[name]
            && let [kind, mark, key, _device, len] = parts[..]
            && let (
                Value::Text(kind),
                Value::Mark(Mark::StorageOf(number)),
                Value::Text(key),
                Value::Int(len),
            ) = (&self.values[kind], &self.values[mark], &self.values[key], &self.values[len])
            && kind == "storage"
            && key.len() <= KEY_BYTES_MAX
        {
            return Ok(Storage { number: *number, key: key.clone(), len: *len });
        }
        wrong("it names a storage in a way that torch.save does not")
    }

    /// What comes of the few calls that are known; nothing is called.
    fn call(&self, callable: Place, arguments: Place) -> Result<Value, Stop> {
        let (Value::Mark(mark), Value::Tuple(arguments)) = (&self.values[callable], &self.values[arguments])
        else {
            return wrong("it calls an unknown name");
        };
        let argument = |index: usize| arguments.get(index).map(|place| &self.values[*place]);
        match (mark, argument(0), argument(1), argument(2), argument(3)) {
            (Mark::OrderedDict, None, ..) => Ok(Value::Dict(Vec::new())),
            (Mark::Config, None, ..) => Ok(Value::Config(None)),
            (Mark::RebuildParameter, Some(Value::Tensor(tensor)), ..) => Ok(Value::Tensor(tensor.clone())),
            (
                Mark::RebuildTensor,
                Some(Value::Storage(storage)),
                Some(Value::Int(offset)),
                Some(Value::Tuple(shape)),
                Some(Value::Tuple(strides)),
            ) => Ok(Value::Tensor(Tensor {
                storage: storage.clone(),
                offset: *offset,
                shape: self.ints(shape)?,
                strides: self.ints(strides)?,
            })),
            _ => wrong("it builds an object from parts that do not fit"),
        }
    }

    fn ints(&self, places: &[Place]) -> Result<Vec<i64>, Stop> {
        const DIMENSIONS_MAX: usize = 8;
        if places.len() > DIMENSIONS_MAX {
            return wrong(format!("a tensor has more than {DIMENSIONS_MAX} dimensions"));
        }
        let ints = places.iter().map(|place| match self.values[*place] {
            Value::Int(int) => Ok(int),
            _ => wrong("a tensor's shape has entries that are not whole numbers"),
        });
        ints.collect()
    }

    /// Gives an object its attributes. A dictionary's own, such as `_metadata`, are of no use here.
    fn build(&mut self) -> Result<(), Stop> {
        let state = self.pop()?;
        let object = self.top()?;
        let is_dict = matches!(self.values[state], Value::Dict(_));
        match &mut self.values[object] {
            Value::Dict(_) => Ok(()),
            Value::Config(attributes) if is_dict => {
                *attributes = Some(state);
                Ok(())
            }
            _ => wrong("it sets attributes of an object without any"),
        }
    }
}

/// The mark that a name stands for.
fn mark(module: &str, name: &str) -> Result<Mark, Stop> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Mark::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Mark::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Mark::RebuildParameter,
        ("torch", "DoubleStorage") => Mark::StorageOf(Number::F64),
        ("torch", "FloatStorage") => Mark::StorageOf(Number::F32),
        ("torch", "HalfStorage") => Mark::StorageOf(Number::F16),
        ("torch", "BFloat16Storage") => Mark::StorageOf(Number::BF16),
        (
            "torch",
            "LongStorage" | "IntStorage" | "ShortStorage" | "CharStorage" | "ByteStorage" | "BoolStorage",
        ) => Mark::StorageOf(Number::Other),
        // The class of the public code's configuration, in whatever file it stood.
        (_, "BDHConfig") => Mark::Config,
        _ => return Err(Stop::Forbidden(format!("{module}.{name}"))),
    })
}
