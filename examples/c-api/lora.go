// lora.c in Go, with cgo.
//
//	go run lora.go
package main

// #cgo pkg-config: lowrank
// #include <lowrank.h>
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"
)

// matrix is a float32 matrix in memory of C, which a struct of C may point to.
type matrix struct {
	values []float32
	tensor *C.DLTensor
}

func newMatrix(rows, cols int, value func(float64) float64) matrix {
	count := rows * cols
	data := C.calloc(C.size_t(count), 4)
	shape := (*[2]C.int64_t)(C.calloc(2, 8))
	shape[0], shape[1] = C.int64_t(rows), C.int64_t(cols)
	tensor := (*C.DLTensor)(C.calloc(1, C.sizeof_DLTensor))
	tensor.data = data
	tensor.device.device_type = C.kDLCPU
	tensor.ndim = 2
	tensor.dtype = C.DLDataType{code: C.kDLFloat, bits: 32, lanes: 1}
	tensor.shape = &shape[0]
	values := unsafe.Slice((*float32)(data), count)
	for i := range values {
		values[i] = float32(value(float64(i)))
	}
	return matrix{values, tensor}
}

func check(code C.int32_t) error {
	if code == C.LOWRANK_OK {
		return nil
	}
	return errors.New(C.GoString(C.lowrank_last_error()))
}

func train() error {
	const M, N, K, R = 8, 64, 128, 4
	zero := func(float64) float64 { return 0 }
	x, w := newMatrix(M, K, math.Sin), newMatrix(N, K, func(i float64) float64 { return 0.1 * math.Cos(3*i) })
	a, b := newMatrix(R, K, func(i float64) float64 { return 0.1 * math.Sin(7*i) }), newMatrix(N, R, zero)
	t, h, y, dy := newMatrix(M, N, math.Cos), newMatrix(M, R, zero), newMatrix(M, N, zero), newMatrix(M, N, zero)
	dA, dB := newMatrix(R, K, zero), newMatrix(N, R, zero)
	var weight *C.lowrank_weight
	format := C.CString("nf4")
	defer C.free(unsafe.Pointer(format))
	quantize := C.lowrank_quantize_args{size: C.sizeof_lowrank_quantize_args, w: w.tensor, format: format}
	if err := check(C.lowrank_weight_quantize(&quantize, &weight)); err != nil {
		return err
	}
	defer C.lowrank_weight_release(weight)
	forward := C.lowrank_lora_forward_args{size: C.sizeof_lowrank_lora_forward_args, x: x.tensor, w: weight,
		lora_a: a.tensor, lora_b: b.tensor, scaling: 2, h: h.tensor, y: y.tensor}
	backward := C.lowrank_lora_backward_args{size: C.sizeof_lowrank_lora_backward_args, dy: dy.tensor, x: x.tensor,
		lora_a: a.tensor, lora_b: b.tensor, h: h.tensor, scaling: 2, d_lora_a: dA.tensor, d_lora_b: dB.tensor}
	for step := 1; step <= 5; step++ {
		if err := check(C.lowrank_lora_forward(&forward)); err != nil {
			return err
		}
		loss := 0.0
		for i := range y.values {
			off := y.values[i] - t.values[i]
			dy.values[i] = off / (M * N)
			loss += 0.5 * float64(off*off) / (M * N)
		}
		if err := check(C.lowrank_lora_backward(&backward)); err != nil {
			return err
		}
		for i, slope := range dA.values {
			a.values[i] -= 4 * slope
		}
		for i, slope := range dB.values {
			b.values[i] -= 4 * slope
		}
		fmt.Printf("step %d loss %.4f\n", step, loss)
	}
	return nil
}

func main() {
	if err := train(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
