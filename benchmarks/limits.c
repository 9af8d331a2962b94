// Stage: benchmarks. What the machine itself can do: copies, wake-ups, plain sockets, in C.
// Compiled on demand by bare.py and called by the players of the `bare` arm, on memory and sockets
// that they own, so that the limits take turns with the engines in one run. Every function blocks
// its caller and returns seconds (a negative errno where the kernel refused).
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RAILS_MAX = 16, IOV_MAX_HERE = 1024 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// ---- copies --------------------------------------------------------------------------------------

double copy_memory(void* to, const void* from, size_t bytes, int times) {
  double began = now();
  for (int i = 0; i < times; ++i) {
    memcpy(to, from, bytes);
    atomic_signal_fence(memory_order_seq_cst);  // every copy is made, even of the same bytes
  }
  return now() - began;
}

// Scattered copies within one process: what moving blocks costs without any boundary to cross.
double copy_blocks(char* to, const char* from, const int64_t* to_index, const int64_t* from_index,
                   int count, size_t block, int times) {
  double began = now();
  for (int i = 0; i < times; ++i) {
    for (int k = 0; k < count; ++k) {
      memcpy(to + (size_t)to_index[k] * block, from + (size_t)from_index[k] * block, block);
    }
  }
  return now() - began;
}

double pull_memory(int pid, uint64_t to, uint64_t from, size_t bytes, int times) {
  double began = now();
  for (int i = 0; i < times; ++i) {
    for (size_t done = 0; done < bytes;) {
      struct iovec here = {(void*)(to + done), bytes - done};
      struct iovec there = {(void*)(from + done), bytes - done};
      ssize_t moved = process_vm_readv(pid, &here, 1, &there, 1, 0);
      if (moved <= 0) return -(double)errno;
      done += (size_t)moved;
    }
  }
  return now() - began;
}

double pull_blocks(int pid, uint64_t to, uint64_t from, const int64_t* to_index,
                   const int64_t* from_index, int count, size_t block, int times) {
  static struct iovec here[IOV_MAX_HERE], there[IOV_MAX_HERE];
  double began = now();
  for (int i = 0; i < times; ++i) {
    for (int first = 0; first < count; first += IOV_MAX_HERE) {
      int some = count - first < IOV_MAX_HERE ? count - first : IOV_MAX_HERE;
      for (int k = 0; k < some; ++k) {
        here[k] = (struct iovec){(void*)(to + (size_t)to_index[first + k] * block), block};
        there[k] = (struct iovec){(void*)(from + (size_t)from_index[first + k] * block), block};
      }
      ssize_t moved =
          process_vm_readv(pid, here, (unsigned long)some, there, (unsigned long)some, 0);
      if (moved != (ssize_t)(block * (size_t)some)) return moved < 0 ? -(double)errno : -1;
    }
  }
  return now() - began;
}

// ---- waking another process ------------------------------------------------------------------------

enum Waker { WAKE_EVENTFD, WAKE_FUTEX, WAKE_TCP, WAKE_TCP_BUSY, WAKE_SPIN };

struct Words {  // shared by the two processes of a ping-pong; one cache line for each side
  _Alignas(64) atomic_uint turn[2][16];
};

struct Side {
  enum Waker how;
  struct Words* words;
  int own;       // index of the word and descriptor that wake us
  int event[2];  // eventfd
  int socket;    // TCP
  char* payload;
  size_t bytes;
};

static void move_all(int fd, char* at, size_t bytes, int out, int busy) {
  while (bytes > 0) {
    ssize_t moved = out ? send(fd, at, bytes, MSG_NOSIGNAL)
                        : recv(fd, at, bytes, busy ? MSG_DONTWAIT : MSG_WAITALL);
    if (moved < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (moved <= 0) _exit(1);
    at += moved;
    bytes -= (size_t)moved;
  }
}

static void wake_other(struct Side* s, unsigned round) {
  uint64_t one = 1;
  atomic_uint* word = &s->words->turn[!s->own][0];
  switch (s->how) {
    case WAKE_EVENTFD:
      if (write(s->event[!s->own], &one, sizeof one) != sizeof one) _exit(1);
      break;
    case WAKE_FUTEX:
      atomic_store(word, round);
      syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
      break;
    case WAKE_SPIN:
      atomic_store_explicit(word, round, memory_order_release);
      break;
    default:
      move_all(s->socket, s->payload, s->bytes, 1, 0);
  }
}

static void await_other(struct Side* s, unsigned round) {
  uint64_t count;
  atomic_uint* word = &s->words->turn[s->own][0];
  switch (s->how) {
    case WAKE_EVENTFD:
      if (read(s->event[s->own], &count, sizeof count) != sizeof count) _exit(1);
      break;
    case WAKE_FUTEX:
      for (unsigned seen; (seen = atomic_load(word)) != round;) {
        syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
      }
      break;
    case WAKE_SPIN:
      while (atomic_load_explicit(word, memory_order_acquire) != round) {
      }
      break;
    default:
      move_all(s->socket, s->payload, s->bytes, 0, s->how == WAKE_TCP_BUSY);
  }
}

static int open_loopback(int ends[2]) {
  int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof at;
  ends[1] = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr*)&at, sizeof at) || listen(listener, 1) ||
      getsockname(listener, (struct sockaddr*)&at, &length) ||
      connect(ends[1], (struct sockaddr*)&at, sizeof at)) {
    return -errno;
  }
  ends[0] = accept(listener, NULL, NULL);
  for (int i = 0; i < 2; ++i) {
    setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  close(listener);
  return 0;
}

// Seconds for `times` round trips of `bytes` with a forked child that only answers. With `pause_s`
// each round trip begins that long after the last, so that a waiter has gone to sleep; `samples`
// gets each one's seconds.
double ping_pong(int how, size_t bytes, int times, double pause_s, double* samples) {
  struct Words* words =
      mmap(NULL, sizeof *words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int events[2] = {eventfd(0, 0), eventfd(0, 0)}, ends[2] = {-1, -1};
  if (how == WAKE_TCP || how == WAKE_TCP_BUSY) {
    int refused = open_loopback(ends);
    if (refused) return refused;
  }
  char* payload = calloc(1, bytes + 1);
  pid_t child = fork();
  struct Side side = {(enum Waker)how,       words,   child == 0, {events[0], events[1]},
                      ends[child == 0], payload, bytes};
  if (child == 0) {
    for (unsigned i = 1; i <= (unsigned)times; ++i) {
      await_other(&side, i);
      wake_other(&side, i);
    }
    _exit(0);
  }
  struct timespec pause = {(time_t)pause_s, (long)((pause_s - (double)(time_t)pause_s) * 1e9)};
  double spent = 0;
  for (unsigned i = 1; i <= (unsigned)times; ++i) {
    if (pause_s > 0) nanosleep(&pause, NULL);
    double began = now();
    wake_other(&side, i);
    await_other(&side, i);
    samples[i - 1] = now() - began;
    spent += samples[i - 1];
  }
  waitpid(child, NULL, 0);
  for (int i = 0; i < 2; ++i) {
    close(events[i]);
    if (ends[i] >= 0) close(ends[i]);
  }
  munmap(words, sizeof *words);
  free(payload);
  return spent;
}

// ---- plain sockets, one stream a rail ----------------------------------------------------------------

struct Stream {
  int fd, out;
  char* at;
  size_t bytes;
  int fault;
};

static void* run_stream(void* argument) {
  struct Stream* s = argument;
  enum { PIECE = 1 << 20 };
  for (size_t done = 0; done < s->bytes;) {
    size_t some = s->bytes - done < PIECE ? s->bytes - done : PIECE;
    ssize_t moved = s->out ? send(s->fd, s->at + done, some, MSG_NOSIGNAL)
                           : recv(s->fd, s->at + done, some, 0);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) {
      s->fault = moved < 0 ? errno : ECONNRESET;
      break;
    }
    done += (size_t)moved;
  }
  return NULL;
}

// A static split: stream i carries shares[i] bytes, one after the other in memory. The sender ends
// when the kernel took the last byte, the receiver when it has it.
double move_streams(const int* fds, const size_t* shares, int count, void* memory, int out) {
  pthread_t threads[RAILS_MAX];
  struct Stream streams[RAILS_MAX];
  if (count < 1 || count > RAILS_MAX) return -EINVAL;
  char* at = memory;
  double began = now();
  for (int i = 0; i < count; ++i) {
    streams[i] = (struct Stream){fds[i], out, at, shares[i], 0};
    at += shares[i];
    if (i > 0) pthread_create(&threads[i], NULL, run_stream, &streams[i]);
  }
  run_stream(&streams[0]);
  int fault = streams[0].fault;
  for (int i = 1; i < count; ++i) {
    pthread_join(threads[i], NULL);
    if (streams[i].fault) fault = streams[i].fault;
  }
  return fault ? -(double)fault : now() - began;
}
