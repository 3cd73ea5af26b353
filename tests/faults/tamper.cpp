// Runs a program and tampers with one of its system calls, through ptrace(2). Linux on x86-64.
//
//     tamper ACTION NUMBER PROGRAM [ARGUMENTS]
//
// System calls are counted from the moment that the program calls kill(getpid(), 0), until it does
// so again. ACTION happens at the one with that number, counted from 1:
//
//     kill    of all: the program is killed before it
//     enospc  of those that write, sync or rename: it fails with ENOSPC
//     eio     of the same: it fails with EIO
//     short   of those that write: half of it is done
//
// Prints how many there were and what happened to the program: "calls N hit 0|1 status S".

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

bool counts(const char* action, long call) {
    if (std::strcmp(action, "kill") == 0) {
        return true;
    }
    switch (call) {
        case SYS_write:
            return true;
        case SYS_fsync:
        case SYS_rename:
        case SYS_renameat:
        case SYS_renameat2:
            return std::strcmp(action, "short") != 0;
        default:
            return false;
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: tamper kill|enospc|eio|short NUMBER PROGRAM [ARGUMENTS]\n");
        return 2;
    }
    const char* action = argv[1];
    const long wanted = std::atol(argv[2]);
    const pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        execvp(argv[3], argv + 3);
        std::_Exit(127);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
        std::perror("tamper: the program did not start");
        return 2;
    }
    ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    bool counting = false, entering = true, hit = false;
    long calls = 0, failure = 0;
    int deliver = 0;
    while (true) {
        if (ptrace(PTRACE_SYSCALL, child, nullptr, deliver) != 0) {
            break;
        }
        deliver = 0;
        if (waitpid(child, &status, 0) != child || WIFEXITED(status) || WIFSIGNALED(status)) {
            break;
        }
        if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {  // a signal for the program
            deliver = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
            continue;
        }
        user_regs_struct registers;
        ptrace(PTRACE_GETREGS, child, nullptr, &registers);
        if (entering) {
            const long call = static_cast<long>(registers.orig_rax);
            if (call == SYS_kill && registers.rsi == 0) {
                counting = !counting;
            } else if (counting && counts(action, call) && ++calls == wanted) {
                hit = true;
                if (std::strcmp(action, "kill") == 0) {
                    kill(child, SIGKILL);
                    waitpid(child, &status, 0);
                    break;
                }
                if (std::strcmp(action, "short") == 0) {
                    registers.rdx = (registers.rdx + 1) / 2;
                } else {
                    failure = std::strcmp(action, "eio") == 0 ? EIO : ENOSPC;
                    registers.orig_rax = static_cast<unsigned long long>(-1);
                }
                ptrace(PTRACE_SETREGS, child, nullptr, &registers);
            }
        } else if (failure != 0) {
            registers.rax = static_cast<unsigned long long>(-failure);
            ptrace(PTRACE_SETREGS, child, nullptr, &registers);
            failure = 0;
        }
        entering = !entering;
    }
    const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    std::printf("calls %ld hit %d status %d\n", calls, hit ? 1 : 0, code);
    return 0;
}
