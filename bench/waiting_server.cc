// Answers HTTP/1.1 requests one after the other, each of which takes as many microseconds as it is
// told. Prints its port, and for each line on its standard input how many it has answered. A thread
// for each connection, asleep most of the time: one that is answered late makes no other late.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

namespace {

constexpr char kAnswer[] =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n"
    "{\"predictions\": [2.5]}";

using Clock = std::chrono::steady_clock;

std::atomic<long> answered{0};
std::mutex mutex;
Clock::time_point free_at;

// Returns when a request that has just come is to be answered.
Clock::time_point Due(std::chrono::microseconds each) {
  std::lock_guard<std::mutex> lock(mutex);
  return free_at = std::max(free_at, Clock::now()) + each;
}

// Reads until a whole request is there, and leaves in `got` what follows it.
bool Next(int peer, std::string* got) {
  char some[65536];
  while (true) {
    const size_t head = got->find("\r\n\r\n");
    if (head != std::string::npos) {
      const char* field = strcasestr(got->c_str(), "\r\ncontent-length:");
      const size_t whole = head + 4 + (field ? std::strtoul(field + 17, nullptr, 10) : 0);
      if (got->size() >= whole) {
        got->erase(0, whole);
        return true;
      }
    }
    const ssize_t count = read(peer, some, sizeof some);
    if (count <= 0) return false;
    got->append(some, count);
  }
}

void Serve(int peer, std::chrono::microseconds each) {
  const int on = 1;
  setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  for (std::string got; Next(peer, &got);) {
    std::this_thread::sleep_until(Due(each));
    if (send(peer, kAnswer, sizeof kAnswer - 1, MSG_NOSIGNAL) < 0) break;
    ++answered;
  }
  close(peer);
}

}  // namespace

int main(int, char** argv) {
  const std::chrono::microseconds each(std::stol(argv[1]));
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) || listen(listener, 1024)) {
    std::cerr << std::strerror(errno) << std::endl;
    return 1;
  }
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  std::thread([listener, each] {
    while (true) {
      const int peer = accept(listener, nullptr, nullptr);
      if (peer >= 0) std::thread(Serve, peer, each).detach();
    }
  }).detach();
  std::cout << ntohs(address.sin_port) << std::endl;
  for (std::string line; std::getline(std::cin, line);) std::cout << answered << std::endl;
  std::_Exit(0);
}
