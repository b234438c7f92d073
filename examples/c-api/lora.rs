//! lora.c in Rust.
//!
//!   rustc -O lora.rs -L $(pkg-config --variable=libdir lowrank) && ./lora
use std::ffi::{c_void, CStr};
use std::mem::size_of;
use std::os::raw::c_char;
use std::ptr::{null, null_mut};

#[repr(C)]
struct DLTensor { data: *mut c_void, device_type: i32, device_id: i32, ndim: i32, code: u8, bits: u8, lanes: u16, shape: *const i64, strides: *const i64, byte_offset: u64 }
#[repr(C)]
struct Quantize { size: usize, device: u32, flags: u32, stream: *mut c_void, w: *const DLTensor, format: *const c_char, blocksize: i64 }
#[repr(C)]
struct Forward {
    size: usize, device: u32, flags: u32, stream: *mut c_void, x: *const DLTensor, w: *mut c_void, bias: *const DLTensor, lora_a: *const DLTensor, lora_b: *const DLTensor,
    lora_bias: *const DLTensor, dropout_mask: *const DLTensor, dropout: f64, seed: u64, scaling: f32, reserved: u32, h: *const DLTensor, y: *const DLTensor,
}
#[repr(C)]
struct Backward {
    size: usize, device: u32, flags: u32, stream: *mut c_void, dy: *const DLTensor, x: *const DLTensor, w: *mut c_void, lora_a: *const DLTensor, lora_b: *const DLTensor,
    h: *const DLTensor, dropout_mask: *const DLTensor, dropout: f64, seed: u64, scaling: f32, reserved: u32, dx: *const DLTensor, d_lora_a: *const DLTensor,
    d_lora_b: *const DLTensor, d_bias: *const DLTensor, d_lora_bias: *const DLTensor,
}
#[link(name = "lowrank")]
extern "C" {
    fn lowrank_last_error() -> *const c_char;
    fn lowrank_weight_quantize(args: *const Quantize, weight: *mut *mut c_void) -> i32;
    fn lowrank_weight_release(weight: *mut c_void) -> i32;
    fn lowrank_lora_forward(args: *const Forward) -> i32;
    fn lowrank_lora_backward(args: *const Backward) -> i32;
}

fn check(code: i32) {
    if code != 0 { panic!("{}", unsafe { CStr::from_ptr(lowrank_last_error()) }.to_string_lossy()); }
}

/// Elements, and the tensor over them, which the library reads and writes in place.
struct Matrix { values: Vec<f32>, _shape: Box<[i64; 2]>, tensor: DLTensor }
fn matrix(rows: usize, cols: usize, value: impl Fn(f64) -> f64) -> Box<Matrix> {
    let mut values: Vec<f32> = (0..rows * cols).map(|i| value(i as f64) as f32).collect();
    let shape = Box::new([rows as i64, cols as i64]);
    let tensor = DLTensor { data: values.as_mut_ptr().cast(), device_type: 1, device_id: 0, ndim: 2, code: 2, bits: 32, lanes: 1, shape: shape.as_ptr(), strides: null(), byte_offset: 0 };
    Box::new(Matrix { values, _shape: shape, tensor })
}

fn main() {
    const M: usize = 8; const N: usize = 64; const K: usize = 128; const R: usize = 4;
    let zero = |_: f64| 0.0;
    let (x, w) = (matrix(M, K, f64::sin), matrix(N, K, |i| 0.1 * (3.0 * i).cos()));
    let (mut a, mut b, t) = (matrix(R, K, |i| 0.1 * (7.0 * i).sin()), matrix(N, R, zero), matrix(M, N, f64::cos));
    let (h, y, mut dy) = (matrix(M, R, zero), matrix(M, N, zero), matrix(M, N, zero));
    let (d_a, d_b) = (matrix(R, K, zero), matrix(N, R, zero));
    let mut weight = null_mut();
    let quantize = Quantize { size: size_of::<Quantize>(), device: 0, flags: 0, stream: null_mut(), w: &w.tensor, format: b"nf4\0".as_ptr().cast(), blocksize: 0 };
    check(unsafe { lowrank_weight_quantize(&quantize, &mut weight) });
    for step in 1..=5 {
        let forward = Forward { size: size_of::<Forward>(), device: 0, flags: 0, stream: null_mut(), x: &x.tensor, w: weight, bias: null(), lora_a: &a.tensor, lora_b: &b.tensor,
            lora_bias: null(), dropout_mask: null(), dropout: 0.0, seed: 0, scaling: 2.0, reserved: 0, h: &h.tensor, y: &y.tensor };
        check(unsafe { lowrank_lora_forward(&forward) });
        let mut loss = 0.0;
        for i in 0..M * N {
            let off = y.values[i] - t.values[i];
            dy.values[i] = off / (M * N) as f32;
            loss += 0.5 * f64::from(off * off) / (M * N) as f64;
        }
        let backward = Backward { size: size_of::<Backward>(), device: 0, flags: 0, stream: null_mut(), dy: &dy.tensor, x: &x.tensor, w: null_mut(), lora_a: &a.tensor, lora_b: &b.tensor,
            h: &h.tensor, dropout_mask: null(), dropout: 0.0, seed: 0, scaling: 2.0, reserved: 0, dx: null(), d_lora_a: &d_a.tensor, d_lora_b: &d_b.tensor, d_bias: null(), d_lora_bias: null() };
        check(unsafe { lowrank_lora_backward(&backward) });
        for (value, slope) in a.values.iter_mut().zip(&d_a.values) { *value -= 4.0 * slope; }
        for (value, slope) in b.values.iter_mut().zip(&d_b.values) { *value -= 4.0 * slope; }
        println!("step {step} loss {loss:.4}");
    }
    check(unsafe { lowrank_weight_release(weight) });
}
