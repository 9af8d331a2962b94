// Stage: device. A timer that wakes the progress thread again and again while a GPU works for us.
// Set while somebody sleeps; engine lock held. What always holds: it costs a system call only when
// its period changes, and one for each time that somebody goes to sleep while it is set.
#pragma once

#include "core/types.h"

namespace tent {

class Alarm {
 public:
  // Joins the epoll set. Throws std::system_error without descriptors.
  explicit Alarm(int wait_set);
  ~Alarm();
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

  void every(TimeNs period);  // 0: never
  void hush();                // until it goes off again

 private:
  const int fd_;
  TimeNs period_ = 0;
};

}  // namespace tent
