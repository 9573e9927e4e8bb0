// Answers every gRPC method with the same few bytes: at once, or one call after the other, each of
// which takes as many microseconds as it is told. Prints its port, and for each line on its standard
// input how many calls it has answered.

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<long> answered{0};

class Call final : public grpc::ServerGenericBidiReactor {
 public:
  Call(const grpc::ByteBuffer* answer, class Later* later) : answer_(answer), later_(later) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override;
  void Answer() { StartWriteAndFinish(answer_, grpc::WriteOptions(), grpc::Status::OK); }

  void OnDone() override {
    ++answered;
    delete this;
  }

 private:
  grpc::ByteBuffer request_;
  const grpc::ByteBuffer* answer_;
  class Later* later_;
};

// Answers one call after the other: a thread of its own, as gRPC's timers know milliseconds only. A
// call that is answered late makes none of those behind it late.
class Later {
 public:
  explicit Later(std::chrono::microseconds each) : each_(each) {
    std::thread([this] { Run(); }).detach();
  }

  void Add(Call* call) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_ = std::max(free_, Clock::now()) + each_;
    waiting_.emplace_back(free_, call);
    if (waiting_.size() == 1) some_.notify_one();
  }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      some_.wait(lock, [this] { return !waiting_.empty(); });
      const auto [due, call] = waiting_.front();
      lock.unlock();
      std::this_thread::sleep_until(due);
      call->Answer();
      lock.lock();
      waiting_.pop_front();
    }
  }

  const std::chrono::microseconds each_;
  std::mutex mutex_;
  Clock::time_point free_;
  std::condition_variable some_;
  std::deque<std::pair<Clock::time_point, Call*>> waiting_;
};

void Call::OnReadDone(bool ok) {
  if (!ok) {
    Finish(grpc::Status(grpc::StatusCode::INTERNAL, "no request"));
  } else if (later_ != nullptr) {
    later_->Add(this);
  } else {
    Answer();
  }
}

class Everything final : public grpc::CallbackGenericService {
 public:
  explicit Everything(Later* later) : later_(later) {
    grpc::Slice slice("answer", 6);
    answer_ = grpc::ByteBuffer(&slice, 1);
  }

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Call(&answer_, later_);
  }

 private:
  grpc::ByteBuffer answer_;
  Later* later_;
};

}  // namespace

int main(int argc, char** argv) {
  const long each_us = argc > 1 ? std::stol(argv[1]) : 0;
  Later* later = each_us ? new Later(std::chrono::microseconds(each_us)) : nullptr;
  Everything service(later);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  auto server = builder.BuildAndStart();
  std::cout << port << std::endl;
  for (std::string line; std::getline(std::cin, line);) std::cout << answered << std::endl;
  std::_Exit(0);
}
