// Stage: device. The code of move_rows for GPUs; see rows.h. Written by
// `python -m triton_kernels.rows_ptx` with Triton 3.9.0; not to be edited.
#include "device/rows.h"

namespace tent {

const char* const kMoveRowsCode = R"ptx(
  .version 8.0
  .target sm_80
  .address_size 64
  .visible .entry move_rows(
  .param .u64 .ptr .global .align 1 move_rows_param_0,
  .param .u32 move_rows_param_1,
  .param .u64 .ptr .global .align 1 move_rows_param_2,
  .param .u64 .ptr .global .align 1 move_rows_param_3
  )
  .reqntid 256
  {
  .reg .pred 	%p<7>;
  .reg .b32 	%r<12>;
  .reg .b64 	%rd<30>;
  ld.param.b32 	%r3, [move_rows_param_1];
  mov.u32 	%r11, %ctaid.x;
  setp.ge.s32 	%p1, %r11, %r3;
  @%p1 bra 	$L__BB0_3;
  ld.param.b64 	%rd5, [move_rows_param_0];
  mov.u32 	%r1, %nctaid.x;
  mov.u32 	%r4, %tid.x;
  shl.b32 	%r5, %r4, 1;
  and.b32 	%r6, %r5, 510;
  or.b32 	%r7, %r6, 512;
  or.b32 	%r8, %r6, 1024;
  or.b32 	%r9, %r5, 1536;
  cvt.u64.u32 	%rd1, %r6;
  cvt.u64.u32 	%rd2, %r7;
  cvt.u64.u32 	%rd3, %r8;
  cvt.u64.u32 	%rd4, %r9;
  mul.lo.s32 	%r10, %r11, 3;
  mul.lo.s32 	%r2, %r1, 3;
  $L__BB0_2:
  mad.wide.s32 	%rd7, %r10, 8, %rd5;
  mov.u64 %rd6, 0x0;
  ld.global.b64 { %rd6 }, [ %rd7 + 0 ];
  add.s64 	%rd9, %rd7, 8;
  mov.u64 %rd8, 0x0;
  ld.global.b64 { %rd8 }, [ %rd9 + 0 ];
  add.s64 	%rd11, %rd7, 16;
  mov.u64 %rd10, 0x0;
  ld.global.b64 { %rd10 }, [ %rd11 + 0 ];
  setp.gt.s64 	%p2, %rd10, %rd1;
  setp.gt.s64 	%p3, %rd10, %rd2;
  setp.gt.s64 	%p4, %rd10, %rd3;
  setp.gt.s64 	%p5, %rd10, %rd4;
  shl.b64 	%rd28, %rd1, 3;
  add.s64 	%rd14, %rd6, %rd28;
  add.s64 	%rd17, %rd14, 4096;
  add.s64 	%rd20, %rd14, 8192;
  shl.b64 	%rd29, %rd4, 3;
  add.s64 	%rd23, %rd6, %rd29;
  mov.u64 %rd12, 0x0;
  mov.u64 %rd13, 0x0;
  @%p2 ld.global.v2.b64 { %rd12, %rd13 }, [ %rd14 + 0 ];
  mov.u64 %rd15, 0x0;
  mov.u64 %rd16, 0x0;
  @%p3 ld.global.v2.b64 { %rd15, %rd16 }, [ %rd17 + 0 ];
  mov.u64 %rd18, 0x0;
  mov.u64 %rd19, 0x0;
  @%p4 ld.global.v2.b64 { %rd18, %rd19 }, [ %rd20 + 0 ];
  mov.u64 %rd21, 0x0;
  mov.u64 %rd22, 0x0;
  @%p5 ld.global.v2.b64 { %rd21, %rd22 }, [ %rd23 + 0 ];
  add.s64 	%rd24, %rd8, %rd28;
  add.s64 	%rd25, %rd24, 4096;
  add.s64 	%rd26, %rd24, 8192;
  add.s64 	%rd27, %rd8, %rd29;
  @%p2 st.global.v2.b64 [ %rd24 + 0 ], { %rd12, %rd13 };
  @%p3 st.global.v2.b64 [ %rd25 + 0 ], { %rd15, %rd16 };
  @%p4 st.global.v2.b64 [ %rd26 + 0 ], { %rd18, %rd19 };
  @%p5 st.global.v2.b64 [ %rd27 + 0 ], { %rd21, %rd22 };
  add.s32 	%r11, %r11, %r1;
  add.s32 	%r10, %r10, %r2;
  setp.lt.s32 	%p6, %r11, %r3;
  @%p6 bra 	$L__BB0_2;
  $L__BB0_3:
  ret;
  }
)ptx";

}  // namespace tent
